"""Thresholds: how many alerts people can look at, and how sure a decline must be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.policy import Policy

__all__ = ["PolicyTargets", "choose_policy", "policy_to_json"]

_LEAST_DECLINES = 20
"""A precision measured on fewer transactions is luck."""


@dataclass(frozen=True)
class PolicyTargets:
    """What the thresholds are to achieve on the validation.

    Attributes:
        alert_budget: Most of all transactions that may be flagged (review and decline), a share.
        decline_precision: Least share of frauds among the declined.
    """

    alert_budget: float = 0.01
    decline_precision: float = 0.9

    def __post_init__(self) -> None:
        if not (0.0 < self.alert_budget < 1.0 and 0.0 < self.decline_precision <= 1.0):
            raise ConfigurationError(
                f"alert_budget ({self.alert_budget}) must lie between 0 and 1, and "
                f"decline_precision ({self.decline_precision}) above 0 and at most at 1."
            )


def choose_policy(
    scores: npt.NDArray[np.float32],
    is_fraud: npt.NDArray[np.bool_],
    targets: PolicyTargets,
    *,
    version: str = "1",
) -> Policy:
    """Return the lowest thresholds that keep the targets on these transactions.

    Transactions with equal scores are flagged together or not at all. If no threshold reaches the
    precision on at least 20 transactions, the decline threshold is 1: nothing is declined.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_ties = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    thresholds = ranked[last_of_ties]  # from high to low
    flagged = last_of_ties + 1
    hits = np.cumsum(is_fraud[order])[last_of_ties]
    within = np.flatnonzero(flagged <= targets.alert_budget * len(scores))
    precise = np.flatnonzero(
        (hits >= targets.decline_precision * flagged) & (flagged >= _LEAST_DECLINES)
    )
    smallest = float(np.finfo(np.float32).tiny)
    review = max(float(thresholds[within[-1]]), smallest) if len(within) else 1.0
    decline = float(thresholds[precise[-1]]) if len(precise) else 1.0
    return Policy(version, review, max(review, decline))


def policy_to_json(policy: Policy, targets: PolicyTargets) -> str:
    """Return `policy.json`: the fields that `Policy.from_json` reads, and what they aim at."""
    return json.dumps(
        {
            "policy_version": policy.version,
            "review_threshold": policy.review_threshold,
            "decline_threshold": policy.decline_threshold,
            "targets": asdict(targets),
        },
        indent=2,
    )
