"""Why a transaction was flagged, in plain words: from TreeSHAP contributions to reasons.

Features that say the same in several ways (the same count over four windows) would fill the list
with one thought. So features are gathered in topics: a topic's weight is the sum of its features'
contributions, and it speaks through the feature that pushes the score up most. The topic's name is
the reason's code, stable for machines and statistics; the text, with the value, is for people.
Topics and texts follow from the features' declarations, so a new feature has both at once.

The first reason is always the policy's: which threshold the score reached. Topics follow, the
heaviest first, and only those that push the score up, with at least a tenth of the whole push.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.features import CATALOGUE, FeatureContract
from flagger.policy import APPROVE, Policy
from flagger.reason_texts import text_of, topic_of

__all__ = ["MAX_TOPICS", "SCORE_CODE", "TOPICS", "Reason", "ReasonWriter"]

SCORE_CODE = "score"
"""Code of the policy's own reason."""
MAX_TOPICS = 3
"""Most reasons behind the policy's."""
_LEAST_SHARE = 0.1
"""A topic below this share of all that pushes the score up is no reason worth reading."""
_SCORE_TOLERANCE = 1e-3
"""Largest difference between a score and what its contributions add up to, as probabilities; more
than any rounding, less than two models' difference."""

TOPICS: tuple[str, ...] = tuple(dict.fromkeys(topic_of(feature) for feature in CATALOGUE))
"""Codes of the reasons that the model can give."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason of a review or a decline.

    Attributes:
        code: `score`, or one of `TOPICS`.
        text: One line for a person.
    """

    code: str
    text: str


class ReasonWriter:
    """Writes the reasons of one model version's decisions.

    Args:
        policy: The thresholds that decided.
        contract: Tells the words behind category codes.
    """

    def __init__(self, policy: Policy, contract: FeatureContract) -> None:
        self._policy = policy
        self._contract = contract
        topics = [topic_of(feature) for feature in CATALOGUE]
        self._topic_of = np.array([TOPICS.index(topic) for topic in topics])
        self._in_topic = np.eye(len(TOPICS), dtype=np.float32)[self._topic_of]  # [F, topics]

    def of_policy(self, score: float, decision: int) -> list[Reason]:
        """Return the policy's own reason; nothing for approvals."""
        return [Reason(SCORE_CODE, text) for text in self._policy.reason(score, decision)]

    def write(
        self,
        rows: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        decisions: npt.NDArray[np.uint8],
        contributions: npt.NDArray[np.float32] | None = None,
    ) -> list[list[Reason]]:
        """Return the reasons of each flagged transaction: the policy's, then up to MAX_TOPICS.

        Args:
            rows: Feature rows, float32 [n, F].
            scores: float32 [n].
            decisions: Codes of `flagger.policy`, uint8 [n].
            contributions: TreeSHAP values, float32 [n, F + 1], the bias last; a row of NaN, or
                None for all, where there is no explanation: the policy's reason stands alone.
        """
        reasons = [
            self.of_policy(float(score), int(decision))
            for score, decision in zip(scores, decisions, strict=True)
        ]
        if contributions is None or contributions.shape != (len(rows), len(CATALOGUE) + 1):
            return reasons
        usable = self.explains(contributions, scores) & (decisions != APPROVE)
        features = contributions[:, :-1]
        weights = features @ self._in_topic
        least = _LEAST_SHARE * np.maximum(weights, 0.0).sum(axis=1)
        order = np.argsort(-weights, axis=1, kind="stable")[:, :MAX_TOPICS]
        for i in np.flatnonzero(usable).tolist():
            for topic in order[i]:
                if weights[i, topic] > 0 and weights[i, topic] >= least[i]:
                    within = np.where(self._topic_of == topic, features[i], -np.inf)
                    reasons[i].append(self._reason(int(within.argmax()), rows[i]))
        return reasons

    def explains(
        self, contributions: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.bool_]:
        """Return which rows' contributions add up to their score, bool [n].

        Others were not explained, or by another model than the one that scored.
        """
        margins = contributions.sum(axis=1, dtype=np.float64)
        told: npt.NDArray[Any] = 1.0 / (1.0 + np.exp(-np.clip(margins, -500.0, 500.0)))
        close: npt.NDArray[np.bool_] = np.abs(told - scores) <= _SCORE_TOLERANCE  # NaN is not
        return close

    def _reason(self, column: int, row: npt.NDArray[np.float32]) -> Reason:
        feature, value = CATALOGUE[column], float(row[column])
        word = None
        if feature.aggregate == "code" and not math.isnan(value):
            known = self._contract.vocabularies[feature.value]
            word = known[int(value) - 1] if 1 <= value <= len(known) else None
        text = text_of(feature, value, word, self._contract.label_delay_days)
        return Reason(TOPICS[self._topic_of[column]], text)
