"""A candidate scores a sample of what the live version decides; nothing that it does is decided.

At most `FLAGGER_SHADOW_ROWS_PER_S` rows a second are sent, one request at a time, and after a
request that took d seconds none is sent for 9 d: nine tenths of the time Triton has nothing to do
for the shadow. What it does not answer is counted and forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelError
from flagger.models import ModelVersion
from flagger.policy import DECISIONS, Policy
from flagger.recode import CategoryCodes
from flagger.row_budget import RowBudget
from flagger.settings import Settings
from flagger.triton import ModelName, PendingScores, Scorer
from streamer.drift_watch import evenly
from streamer.metrics import StreamerMetrics

__all__ = ["TIME_SHARE", "Shadow"]

TIME_SHARE = 0.1
"""Most of the time that a request of the shadow is under way."""
_ANSWER_S = 0.001
"""The answer is there already when it is taken."""
_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request under way, when it was sent, and what the live version said of the same rows."""

    pending: PendingScores
    live_scores: npt.NDArray[np.float32]
    sent_s: float


class Shadow:
    """Compares a candidate with the live version.

    Args:
        candidate: The version that scores beside it.
        live_policy: Thresholds of the live version.
        scorer: Connection to Triton.
        settings: Limits.
        metrics: Where it shows.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        candidate: ModelVersion,
        live_policy: Policy,
        scorer: Scorer,
        settings: Settings,
        metrics: StreamerMetrics,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._entry = ModelName(settings.streamer_model, candidate.version)
        self._policies = live_policy, candidate.policy
        self._codes = CategoryCodes(candidate.contract)
        self._scorer = scorer
        self._metrics = metrics
        self._clock_s = clock_s
        self._budget = RowBudget(settings.shadow_rows_per_s, clock_s)
        self._max_rows = settings.max_batch_rows
        self._asked: _Asked | None = None
        self._rest_until_s = clock_s()

    def observe(
        self,
        rows: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        category_keys: npt.NDArray[np.uint64],
    ) -> None:
        """Take what the live version decided; returns at once.

        Args:
            rows: Feature rows, float32 [n, F].
            scores: The live version's scores, float32 [n].
            category_keys: Keys of `CATEGORY_FIELDS`, uint64 [n, 4].
        """
        self.take_answer()
        if self._asked is not None:
            return
        now_s = self._clock_s()
        if now_s < self._rest_until_s:
            return
        taken = self._budget.take(min(len(rows), self._max_rows))
        if not taken:
            return
        chosen = evenly(len(rows), taken)
        own = self._codes.written(rows[chosen], category_keys[chosen])
        self._asked = _Asked(self._scorer.submit(own, self._entry), scores[chosen], now_s)

    def take_answer(self) -> None:
        """Take the answer under way if it has come; call it now and then."""
        if self._asked is not None and self._asked.pending.done:
            asked, self._asked = self._asked, None
            self._compare(asked)

    def _compare(self, asked: _Asked) -> None:
        now_s = self._clock_s()
        self._rest_until_s = now_s + (now_s - asked.sent_s) * (1 / TIME_SHARE - 1)
        try:
            scores = asked.pending.result(_ANSWER_S)
        except ModelError:
            self._metrics.shadow_errors.inc()
            self._rest_until_s = max(self._rest_until_s, now_s + _RETRY_S)
            return
        live_policy, policy = self._policies
        live = live_policy.decide(asked.live_scores).astype(np.int64)
        cells = np.bincount(len(DECISIONS) * live + policy.decide(scores), minlength=9)
        for cell in np.flatnonzero(cells).tolist():
            words = DECISIONS[cell // len(DECISIONS)], DECISIONS[cell % len(DECISIONS)]
            self._metrics.shadow_decisions.labels(*words).inc(int(cells[cell]))
        difference = np.abs(scores - asked.live_scores).astype(np.float64)
        self._metrics.shadow_difference.observe_all(difference)
