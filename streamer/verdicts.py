"""What is decided about a batch: by the model with its reasons, or by rules while it is away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from flagger.brakes import Brakes
from flagger.explanations import Explainer
from flagger.features import TransactionBatch
from flagger.models import ModelVersion
from flagger.overrules import Overrule, Overruler, merged_reasons
from flagger.policy import APPROVE, REVIEW
from flagger.reasons import Reason, ReasonWriter
from flagger.rules import RULE_CODE, RuleSet
from flagger.settings import Settings
from flagger.triton import Scorer

__all__ = ["EXPLAINED_WITHIN_MS", "Judge", "Tried", "Verdicts", "Waiting"]

EXPLAINED_WITHIN_MS = 5_000
"""Transactions that waited longer get the policy's reason alone: an explanation costs about 1 ms
of a core, and a streamer that catches up needs it for the decisions of those who wait."""


class Waiting(Protocol):
    """What may still be under way."""

    @property
    def done(self) -> bool:
        """True once it has come."""

    def wait(self, limit_s: float) -> None:
        """Wait for a part of it that is under way, up to `limit_s` seconds."""


@dataclass(frozen=True, slots=True)
class Tried:
    """Rows that a candidate decided.

    Attributes:
        mask: Which, bool [n].
        model_version: The candidate.
        policy_version: Its thresholds.
    """

    mask: npt.NDArray[np.bool_]
    model_version: str
    policy_version: str


@dataclass(slots=True)
class Verdicts:
    """The decisions on n feature rows.

    Attributes:
        codes: Decision codes, uint8 [n].
        source: Who decided: `model` or `rules`.
        scores: float32 [n]; None where no model was asked.
        flagged: Rows that are not approved, intp [k].
        explanation: Why they are flagged, under way; None: nobody was asked.
        overruled: Rows whose decision lists or rules have made, with what they say.
        tried: Rows that a candidate decided; None: the live version decided all.
    """

    codes: npt.NDArray[np.uint8]
    source: str
    scores: npt.NDArray[np.float32] | None
    flagged: npt.NDArray[np.intp]
    explanation: Waiting | None = None
    overruled: dict[int, Overrule] = field(default_factory=dict)
    tried: Tried | None = None
    _write: Callable[[], list[list[Reason]]] = field(default=list)

    @property
    def ready(self) -> bool:
        """True if `reasons` will not wait."""
        return self.explanation is None or self.explanation.done

    def reasons(self) -> list[list[Reason]]:
        """Return why each flagged row is flagged, k lists; call it once."""
        return self._write()

    def overruled_by(
        self,
        overruler: Overruler,
        transactions: TransactionBatch,
        features: npt.NDArray[np.float32],
    ) -> Verdicts:
        """Return the verdicts that lists and rules make of these.

        Args:
            overruler: Lists and rules.
            transactions: The n transactions.
            features: Their rows, float32 [n, F].
        """
        found = overruler.judge(transactions, features, self.codes)
        if not found:
            return self
        codes = self.codes.copy()
        for row, overrule in found.items():
            codes[row] = overrule.code
        flagged = np.flatnonzero(codes != APPROVE)
        place = {row: k for k, row in enumerate(self.flagged.tolist())}

        def write() -> list[list[Reason]]:
            reasons = self._write()
            merged = []
            for row in flagged.tolist():
                others = reasons[place[row]] if row in place else []
                merged.append(merged_reasons(found[row], others) if row in found else others)
            return merged

        decided = {row: overrule for row, overrule in found.items() if overrule.source}
        return replace(self, codes=codes, flagged=flagged, overruled=decided, _write=write)


class Judge:
    """Turns scores into decisions with reasons.

    Args:
        model: The live version: its policy decides.
        scorer: Connection over which explanations are asked for.
        settings: How long to wait for explanations; the rules.
        on_unexplained: Called with the number of flagged transactions that have no explanation.
        brakes: Turn declines into reviews while far too many are declined; None: nothing does.
    """

    def __init__(
        self,
        model: ModelVersion,
        scorer: Scorer,
        settings: Settings,
        on_unexplained: Callable[[int], None],
        brakes: Brakes | None = None,
    ) -> None:
        self._explainer = Explainer(
            scorer,
            model.version,
            timeout_ms=settings.explain_timeout_ms,
            on_missing=on_unexplained,
        )
        self._on_unexplained = on_unexplained
        self._brakes = brakes
        self._rules = RuleSet.load(settings.fallback_rules)
        self.use(model)

    def use(self, model: ModelVersion) -> None:
        """Decide by another version from now on."""
        self._policy = model.policy
        self._writer = ReasonWriter(model.policy, model.contract)
        self._explainer.use(model.version)
        if self._brakes is not None:
            self._brakes.reset()

    def by_model(
        self,
        features: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        waited_ms: npt.NDArray[np.float64],
    ) -> Verdicts:
        """Decide by the model's scores and ask why; returns at once.

        Args:
            features: float32 [n, F].
            scores: float32 [n].
            waited_ms: How old each transaction's message is, float64 [n].
        """
        codes = self._policy.decide(scores)
        flagged = np.flatnonzero(codes != APPROVE)
        rows, their_scores, wanted = features[flagged], scores[flagged], codes[flagged]
        held = self._hold(codes)
        recent = waited_ms[flagged] <= EXPLAINED_WITHIN_MS
        explanation = self._explainer.submit(rows[recent]) if recent.any() else None
        if not recent.all():
            self._on_unexplained(int((~recent).sum()))

        def write() -> list[list[Reason]]:
            contributions = np.full((len(rows), rows.shape[1] + 1), np.nan, dtype=np.float32)
            if explanation is not None:
                contributions[recent] = explanation.result()
            reasons = self._writer.write(rows, their_scores, wanted, contributions)
            if held is not None and self._brakes is not None:
                for i in np.flatnonzero(held[flagged]).tolist():
                    reasons[i].insert(1, self._brakes.reason())
            return reasons

        return Verdicts(codes, "model", scores, flagged, explanation, _write=write)

    def _hold(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_] | None:
        """Turn declines into reviews where the brakes say so; return where, bool [n]."""
        if self._brakes is None:
            return None
        held = self._brakes.held(codes)
        codes[held] = REVIEW
        return held

    def by_rules(self, features: npt.NDArray[np.float32]) -> Verdicts:
        """Decide by the rules alone on float32 [n, F] rows."""
        codes, texts = self._rules.decide(features)
        flagged = np.flatnonzero(codes != APPROVE)
        reasons = [[Reason(RULE_CODE, text) for text in texts[i]] for i in flagged.tolist()]
        return Verdicts(codes, "rules", None, flagged, _write=lambda: reasons)
