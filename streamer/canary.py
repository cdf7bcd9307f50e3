"""The canary's lane: rows of chosen customers go to the candidate and are decided by it.

What it has not answered `FLAGGER_CANARY_TIMEOUT_MS` after the live version's answer to the same
batch, the live version decides. The request is left to itself then, not cancelled: many short
deadlines crash Triton before 25.06 (server#7368). The canary's connection, explanations and brakes
are its own. When its guard says stop, it takes no more rows, and the pointer's canary is taken away
for all doors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.brakes import BrakeLimits, Brakes
from flagger.canary import Canary, CanaryGuard
from flagger.errors import ModelError
from flagger.models import ModelVersion
from flagger.policy import APPROVE, DECISIONS
from flagger.reasons import Reason
from flagger.recode import CategoryCodes
from flagger.settings import Settings
from flagger.triton import ModelName, PendingScores, Scorer
from streamer.metrics import StreamerMetrics
from streamer.verdicts import Judge, Tried, Verdicts, Waiting

__all__ = ["CanaryLane", "CanaryPart", "merged"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Both:
    """Two explanations under way."""

    parts: tuple[Waiting | None, Waiting | None]

    @property
    def done(self) -> bool:
        return all(part is None or part.done for part in self.parts)

    def wait(self, limit_s: float) -> None:
        for part in self.parts:
            if part is not None and not part.done:
                part.wait(limit_s)
                return


def merged(live: Verdicts, mine: Verdicts, tried: Tried) -> Verdicts:
    """Return the decisions of both as those of one batch, n rows, `tried.mask` telling whose.

    Both must have scores.
    """
    n, mask = len(tried.mask), tried.mask
    codes = np.empty(n, dtype=np.uint8)
    codes[~mask], codes[mask] = live.codes, mine.codes
    scores = np.empty(n, dtype=np.float32)
    scores[~mask], scores[mask] = live.scores, mine.scores
    places = [np.flatnonzero(~mask)[live.flagged], np.flatnonzero(mask)[mine.flagged]]

    def write() -> list[list[Reason]]:
        order = np.argsort(np.concatenate(places)).tolist()
        reasons = live.reasons() + mine.reasons()
        return [reasons[i] for i in order]

    return Verdicts(
        codes,
        "model",
        scores,
        np.flatnonzero(codes != APPROVE),
        _Both((live.explanation, mine.explanation)),
        tried=tried,
        _write=write,
    )


@dataclass(slots=True)
class CanaryPart:
    """The rows of one batch that the candidate decides.

    Attributes:
        lane: Where they are.
        mask: Which rows of the batch, bool [n].
        rows: Their features in the candidate's codes, float32 [k, F].
        pending: The answer under way.
        end_s: When it is no longer waited for, monotonic seconds; None: that is not counted yet.
    """

    lane: CanaryLane
    mask: npt.NDArray[np.bool_]
    rows: npt.NDArray[np.float32]
    pending: PendingScores
    end_s: float | None = None

    def has_answer(self) -> bool:
        """Return True if `scores` will not wait; ask once the live version has answered.

        From then on the candidate's time counts: where all of Triton is slow, it is not to blame.
        """
        if self.end_s is None:
            self.end_s = time.monotonic() + self.lane.timeout_s
        return self.pending.done or time.monotonic() >= self.end_s

    def wait(self, limit_s: float) -> None:
        """Wait for what `has_answer` waits for, up to `limit_s` seconds."""
        left_s = limit_s if self.end_s is None else self.end_s - time.monotonic()
        self.pending.wait(max(min(limit_s, left_s), 0.0))

    def scores(self) -> npt.NDArray[np.float32] | None:
        """Return the candidate's scores, float32 [k]; None: it does not answer. Call it once."""
        left_s = self.lane.timeout_s if self.end_s is None else self.end_s - time.monotonic()
        return self.lane.answer(self.pending, max(left_s, 0.0))

    def decided(
        self,
        scores: npt.NDArray[np.float32],
        waited_ms: npt.NDArray[np.float64],
        live: Verdicts,
    ) -> Verdicts:
        """Return the decisions on the whole batch.

        Args:
            scores: The candidate's, float32 [k].
            waited_ms: How old each message is, float64 [n].
            live: The live version's decisions on the other rows.
        """
        mine, tried = self.lane.decide(self, scores, waited_ms[self.mask], live)
        return merged(live, mine, tried)


class CanaryLane:
    """One canary in one streamer.

    Args:
        canary: Which customers.
        model: The candidate.
        settings: Limits, and where Triton is.
        metrics: Where it shows.
        end: Called with the canary and why when the guard says stop.

    Attributes:
        timeout_s: How long the candidate may take, from the live version's answer on.
    """

    def __init__(
        self,
        canary: Canary,
        model: ModelVersion,
        settings: Settings,
        metrics: StreamerMetrics,
        end: Callable[[Canary, str], None],
    ) -> None:
        self._canary = canary
        self._model = model
        self._metrics = metrics
        self._end = end
        self._entry = ModelName(settings.streamer_model, model.version)
        self.timeout_s = settings.canary_timeout_ms / 1000
        self._codes = CategoryCodes(model.contract)
        self._scorer = Scorer(settings.triton_url or "", timeout_ms=settings.triton_timeout_ms)
        self._brakes = Brakes(BrakeLimits.of(settings), metrics.braked.inc)
        self._judge = Judge(model, self._scorer, settings, metrics.unexplained.inc, self._brakes)
        self._guard = CanaryGuard()
        self._on = True

    def split(
        self,
        rows: npt.NDArray[np.float32],
        customer_keys: npt.NDArray[np.uint64],
        category_keys: npt.NDArray[np.uint64],
    ) -> CanaryPart | None:
        """Send the rows of the chosen customers to the candidate; None: there are none.

        Args:
            rows: Feature rows, float32 [n, F].
            customer_keys: uint64 [n].
            category_keys: Keys of `CATEGORY_FIELDS`, uint64 [n, 4].
        """
        mask = self._canary.chosen(customer_keys) if self._on else np.zeros(0, dtype=np.bool_)
        if not mask.any():
            return None
        own = self._codes.written(rows[mask], category_keys[mask])
        return CanaryPart(self, mask, own, self._scorer.submit(own, self._entry))

    def answer(self, pending: PendingScores, wait_s: float) -> npt.NDArray[np.float32] | None:
        """Return the scores that were asked for; None: too slow or failed, which is counted."""
        try:
            scores = pending.result(wait_s)
        except ModelError as error:
            self._guard.note_request(failed=True)
            self._metrics.canary_failures.inc()
            _log.warning("The canary does not answer: %s", error)
            self._look()
            return None
        self._guard.note_request(failed=False)
        return scores

    def decide(
        self,
        part: CanaryPart,
        scores: npt.NDArray[np.float32],
        waited_ms: npt.NDArray[np.float64],
        live: Verdicts,
    ) -> tuple[Verdicts, Tried]:
        """Decide the part's rows by these scores, and compare with the live decisions."""
        mine = self._judge.by_model(part.rows, scores, waited_ms)
        for group, verdicts in (("live", live), ("candidate", mine)):
            counts = np.bincount(verdicts.codes, minlength=len(DECISIONS)).tolist()
            for word, count in zip(DECISIONS, counts, strict=True):
                self._metrics.canary_decisions.labels(group, word).inc(count)
            self._guard.note_decisions(
                candidate=group == "candidate",
                decided=len(verdicts.codes),
                flagged=len(verdicts.codes) - counts[APPROVE],
            )
        self._look()
        return mine, Tried(part.mask, self._model.version, self._model.policy.version)

    def _look(self) -> None:
        """Stop if the guard says so."""
        why = self._guard.stop_reason()
        if why is not None and self._on:
            self._on = False
            self._metrics.canary_stopped.inc()
            _log.error("Canary of version %s stopped: %s", self._canary.version, why)
            self._end(self._canary, why)

    def close(self) -> None:
        """Close the connection; answers under way are given up."""
        self._scorer.close()
