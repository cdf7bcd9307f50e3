"""The decision policy: from a score to approve, review or decline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError

__all__ = ["APPROVE", "DECISIONS", "DECLINE", "REVIEW", "Policy"]

APPROVE, REVIEW, DECLINE = 0, 1, 2
DECISIONS = ("approve", "review", "decline")
"""Names of the decisions by code; the order is the order of severity."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds on the probability of fraud, each inclusive.

    Attributes:
        version: Name of this set of thresholds.
        review_threshold: A score from here on goes to a person.
        decline_threshold: A score from here on is declined; not below `review_threshold`.
    """

    version: str
    review_threshold: float
    decline_threshold: float

    def __post_init__(self) -> None:
        if not 0.0 < self.review_threshold <= self.decline_threshold <= 1.0:
            raise ConfigurationError(
                f"Policy {self.version}: thresholds must satisfy 0 < review "
                f"({self.review_threshold}) <= decline ({self.decline_threshold}) <= 1."
            )

    def decide(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Return the decision codes of scores, uint8 [n].

        >>> Policy("1", 0.5, 0.9).decide(np.array([0.1, 0.5, 0.95], dtype=np.float32)).tolist()
        [0, 1, 2]
        """
        codes = (scores >= np.float32(self.review_threshold)).astype(np.uint8)
        codes += scores >= np.float32(self.decline_threshold)
        return codes

    def reason(self, score: float, decision: int) -> list[str]:
        """Return why a score was flagged; nothing for approvals."""
        if decision == APPROVE:
            return []
        threshold = self.review_threshold if decision == REVIEW else self.decline_threshold
        return [
            f"fraud score {score:.4f} reaches the {DECISIONS[decision]} threshold {threshold:.4f}"
        ]

    def to_dict(self) -> dict[str, str | float]:
        """Return the fields of `policy.json`."""
        return {
            "policy_version": self.version,
            "review_threshold": self.review_threshold,
            "decline_threshold": self.decline_threshold,
        }

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `policy.json` of a model version.

        Raises:
            ConfigurationError: Not a policy, or its thresholds are out of order.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"Not a policy ({error}).") from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read the fields that `to_dict` returns; others are ignored.

        Raises:
            ConfigurationError: Not a policy, or its thresholds are out of order.
        """
        try:
            return cls(
                version=str(data["policy_version"]),
                review_threshold=float(data["review_threshold"]),
                decline_threshold=float(data["decline_threshold"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(
                f"Not a policy ({error!r}); it needs policy_version, review_threshold and "
                f"decline_threshold."
            ) from error
