"""Rules that decide while the model cannot be asked.

Deliberately few and plain: they bound the damage of an outage, they do not replace the model. A
file of this form replaces them (`FLAGGER_FALLBACK_RULES`); the strictest that holds decides:

    [[rule]]
    feature = "customer_count_1h"
    at_least = 10
    decision = "decline"
    reason = "10 or more payments within the hour"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.features import FEATURE_NAMES
from flagger.policy import APPROVE, DECISIONS

__all__ = ["RULE_CODE", "Rule", "RuleSet"]

RULE_CODE = "rule"
"""Reason code of everything that a rule says."""


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule: it holds where the feature is at least the limit; NaN is no value.

    Attributes:
        feature: Name in the catalogue.
        at_least: Limit, included.
        decision: `review` or `decline`.
        reason: What the caller and the analyst read.
    """

    feature: str
    at_least: float
    decision: str
    reason: str


DEFAULT_RULES = (
    Rule("customer_count_1h", 10, "decline", "10 or more payments of the customer in an hour"),
    Rule("customer_count_1h", 4, "review", "4 or more payments of the customer in an hour"),
    Rule("customer_amount_ratio_to_max_30d", 5, "review", "5 times the largest amount in 30 days"),
    Rule("terminal_fraud_count_7d", 1, "review", "confirmed fraud at this terminal within 7 days"),
    Rule("amount", 2_000, "review", "an amount of 2,000 or more"),
)


class _File(msgspec.Struct, forbid_unknown_fields=True):
    rule: list[Rule]


@dataclass(frozen=True)
class RuleSet:
    """Rules in force.

    Attributes:
        rules: All of them.
    """

    rules: tuple[Rule, ...] = DEFAULT_RULES

    @classmethod
    def load(cls, path: Path | None) -> RuleSet:
        """Read a file; None: the default rules.

        Raises:
            ConfigurationError: Unreadable, or a rule names no feature or no decision of ours.
        """
        if path is None:
            return cls()
        try:
            found = msgspec.convert(tomllib.loads(path.read_text()), _File).rule
        except (OSError, ValueError, msgspec.ValidationError) as error:
            raise ConfigurationError(
                f"{path} (FLAGGER_FALLBACK_RULES) is not a file of rules: {error}."
            ) from error
        for rule in found:
            if rule.feature not in FEATURE_NAMES or rule.decision not in DECISIONS[1:]:
                raise ConfigurationError(
                    f"{path}: no such rule: {rule.feature} -> {rule.decision}. Features: "
                    f"{', '.join(FEATURE_NAMES)}; decisions: {', '.join(DECISIONS[1:])}."
                )
        return cls(tuple(found))

    def decide(
        self, rows: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.uint8], list[list[str]]]:
        """Return decision codes, uint8 [n], and the reasons of each row, for float32 [n, F] rows.

        >>> rows = np.zeros((2, len(FEATURE_NAMES)), dtype=np.float32)
        >>> rows[1, FEATURE_NAMES.index("amount")] = 2_500
        >>> codes, reasons = RuleSet().decide(rows)
        >>> codes.tolist(), reasons
        ([0, 1], [[], ['rule: an amount of 2,000 or more']])
        """
        codes = np.full(len(rows), APPROVE, dtype=np.uint8)
        reasons: list[list[str]] = [[] for _ in range(len(rows))]
        for rule in self.rules:
            holds = rows[:, FEATURE_NAMES.index(rule.feature)] >= rule.at_least
            codes[holds] = np.maximum(codes[holds], DECISIONS.index(rule.decision))
            for i in np.flatnonzero(holds).tolist():
                reasons[i].append(f"rule: {rule.reason}")
        return codes, reasons
