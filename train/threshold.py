"""Thresholds: by money, or by how many alerts people can look at and how sure a decline must be."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.policy import Policy
from train.money import CostMatrix, money_saved, policy_of_costs
from train.rows import JudgedWindow

__all__ = ["PolicyTargets", "choose_policy", "policy_for", "policy_to_json", "trade_off"]

_LEAST_DECLINES = 20
"""A precision measured on fewer transactions is luck."""
_TRADE_OFF_SHARES = np.geomspace(0.0005, 0.2, 40)


@dataclass(frozen=True)
class PolicyTargets:
    """What the thresholds are to achieve on the validation.

    Attributes:
        alert_budget: Most of all transactions that may be flagged (review and decline), a share.
        decline_precision: Least share of frauds among the declined.
        reviews_per_day: Instead of `alert_budget`: most transactions flagged in a day, on average.
        costs: Instead of all the others: take the thresholds that save most money.
    """

    alert_budget: float = 0.01
    decline_precision: float = 0.9
    reviews_per_day: float | None = None
    costs: CostMatrix | None = None

    def __post_init__(self) -> None:
        if not (0.0 < self.alert_budget < 1.0 and 0.0 < self.decline_precision <= 1.0):
            raise ConfigurationError(
                f"alert_budget ({self.alert_budget}) must lie between 0 and 1, and "
                f"decline_precision ({self.decline_precision}) above 0 and at most at 1."
            )
        if self.reviews_per_day is not None and not 0.0 < self.reviews_per_day < math.inf:
            raise ConfigurationError(
                f"reviews_per_day ({self.reviews_per_day}) must be a number above 0; to flag "
                f"nothing, use thresholds of 1."
            )
        if self.reviews_per_day is not None and self.costs is not None:
            raise ConfigurationError(
                "Thresholds follow from costs or from reviews a day, not from both: give one."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the targets that were in use."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def choose_policy(
    scores: npt.NDArray[np.float32],
    is_fraud: npt.NDArray[np.bool_],
    targets: PolicyTargets,
    *,
    version: str = "1",
) -> Policy:
    """Return the lowest thresholds that keep alert budget and decline precision.

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


def policy_for(
    scores: npt.NDArray[np.float32],
    validation: JudgedWindow,
    targets: PolicyTargets,
    *,
    version: str = "1",
) -> Policy:
    """Return the thresholds that the targets ask for, chosen on the validation."""
    if targets.costs is not None:
        return policy_of_costs(
            scores, validation.is_fraud, validation.amounts, targets.costs, version
        )
    if targets.reviews_per_day is not None:
        share = targets.reviews_per_day * validation.day_count / len(scores)
        within = PolicyTargets(min(share, 0.999), targets.decline_precision)
        return choose_policy(scores, validation.is_fraud, within, version=version)
    return choose_policy(scores, validation.is_fraud, targets, version=version)


def trade_off(
    scores: npt.NDArray[np.float32],
    window: JudgedWindow,
    costs: CostMatrix,
    policy: Policy,
) -> list[dict[str, float]]:
    """Return what other review thresholds would do: flags a day, recall, precision, money a day.

    Declines stay as the policy has them, as far as they are above the review threshold.
    """
    frauds, days = max(int(window.is_fraud.sum()), 1), max(window.day_count, 1)
    thresholds = np.unique(np.quantile(scores, 1.0 - _TRADE_OFF_SHARES, method="higher"))
    smallest = float(np.finfo(np.float32).tiny)
    points = []
    for threshold in thresholds[::-1]:
        review = max(float(threshold), smallest)
        decisions = Policy("", review, max(review, policy.decline_threshold)).decide(scores)
        flagged = decisions != 0
        hits = int((flagged & window.is_fraud).sum())
        saved = money_saved(decisions, window.is_fraud, window.amounts, costs)
        points.append(
            {
                "review_threshold": review,
                "flags_per_day": float(flagged.sum() / days),
                "recall": hits / frauds,
                "precision": hits / max(int(flagged.sum()), 1),
                "money_saved_per_day": saved / days,
            }
        )
    return points


def policy_to_json(policy: Policy, targets: PolicyTargets) -> str:
    """Return `policy.json`: the fields that `Policy.from_json` reads, and what they aim at."""
    return json.dumps(
        {
            "policy_version": policy.version,
            "review_threshold": policy.review_threshold,
            "decline_threshold": policy.decline_threshold,
            "targets": targets.to_dict(),
        },
        indent=2,
        allow_nan=False,
    )
