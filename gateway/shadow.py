"""The shadow at the gateway: a candidate scores what the live version decided, and decides nothing.

It is asked after the answer has left, by calls of its own, so that it takes no place in a batch of
live rows. Nobody waits for it, so rows are collected and go together, one call at a time: a call
costs the CPU that answers need, a row more costs little. At most `MAX_IN_FLIGHT` rows are under way
and `FLAGGER_SHADOW_ROWS_PER_S` a second are sent; what is beyond is counted and not compared. The
circuit breaker hears neither of its failures nor of its delays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flagger.errors import ModelError
from flagger.policy import DECISIONS
from flagger.recode import CategoryCodes
from flagger.row_budget import RowBudget
from flagger.settings import Settings
from flagger.trials import Attempts
from gateway.backends import Backends
from gateway.canary import Scored
from gateway.deadline import Clock
from gateway.live import LiveModel, Serving
from gateway.metrics import GatewayMetrics
from gateway.ports import ModelScorer
from gateway.trial import TrialFollower

__all__ = ["COLLECT_S", "MAX_IN_FLIGHT", "TIMEOUT_MS", "GatewayShadow"]

COLLECT_S = 0.1
"""How long rows are collected before each call."""
MAX_IN_FLIGHT = 128
"""Most rows that wait or are asked about: twice what 500 rows a second collect, and a batch."""
TIMEOUT_MS = 100.0
"""How long a call may take: what a payment may take as a whole."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _On:
    """A shadow that is on."""

    serving: Serving
    codes: CategoryCodes


class GatewayShadow:
    """Follows the pointer's shadow and asks it about what was answered.

    Args:
        live: Loads and checks versions.
        repository: Folder of the model repository.
        scorer: Asks Triton; nobody else may wait for its answers.
        rows_per_s: Most rows a second.
        metrics: Where it shows.
        clock: Where the time comes from.
    """

    def __init__(
        self,
        live: LiveModel,
        repository: Path,
        scorer: ModelScorer,
        rows_per_s: int,
        metrics: GatewayMetrics,
        clock: Clock,
    ) -> None:
        self._scorer = scorer
        self._metrics = metrics
        self._budget = RowBudget(rows_per_s, clock.monotonic_s)
        attempts = Attempts("compared")
        self._trial = TrialFollower(
            live, repository, lambda pointer: pointer.shadow, str, self._begin, attempts
        )
        self._waiting: list[Scored] = []
        self._asked = 0
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(
        cls, backends: Backends, settings: Settings, metrics: GatewayMetrics, clock: Clock
    ) -> GatewayShadow | None:
        """Return a gateway's shadow; None: there is nothing to ask without being in the way."""
        if backends.background is None:
            return None
        return cls(
            backends.live,
            settings.model_repository,
            backends.background,
            settings.shadow_rows_per_s,
            metrics,
            clock,
        )

    @property
    def is_wanted(self) -> bool:
        """True while the pointer names a shadow, also one that cannot be asked."""
        return self._trial.is_wanted

    async def observe(self, answered: Sequence[Scored]) -> None:
        """Begin to compare what was answered; does not wait for the shadow.

        Args:
            answered: The answers of models to the transactions of one request.
        """
        if self._trial.on is None:
            self._skip("refused", len(answered) if self.is_wanted else 0)
            return
        live = [scored for scored in answered if not scored.is_candidate]
        self._skip("canary", len(answered) - len(live))
        fitting = min(len(live), MAX_IN_FLIGHT - len(self._waiting) - self._asked)
        self._skip("busy", len(live) - fitting)
        taken = self._budget.take(fitting)
        self._skip("rate", fitting - taken)
        self._waiting += live[:taken]
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._compare_waiting())

    async def follow(self) -> None:
        """Begin and end for ever as the pointer says."""
        await self._trial.follow()

    async def close(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self, version: str, serving: Serving) -> _On:
        logger.warning("Version %s is compared with the live one", version)
        return _On(serving, CategoryCodes(serving.engine.contract))

    async def _compare_waiting(self) -> None:
        while self._waiting:
            await asyncio.sleep(COLLECT_S)
            answered, self._waiting = self._waiting, []
            on = self._trial.on
            if on is None:  # it ended meanwhile
                return
            self._asked = len(answered)
            try:
                await self._compare(on, answered)
            finally:
                self._asked = 0

    async def _compare(self, on: _On, answered: Sequence[Scored]) -> None:
        rows = np.concatenate([scored.row for scored in answered])
        keys = np.concatenate([scored.category_keys for scored in answered])
        own = on.codes.written(rows, keys)
        try:
            async with asyncio.timeout(TIMEOUT_MS / 1000):
                scores = await self._scorer.score(own, on.serving.model, TIMEOUT_MS)
        except (TimeoutError, ModelError):
            self._skip("failed", len(answered))
            return
        for scored, theirs in zip(answered, on.serving.policy.decide(scores), strict=True):
            # What the policy wants, before brakes, lists and rules: they would hold for both.
            told = np.array([scored.score], dtype=np.float32)
            mine = scored.serving.policy.decide(told)[0]
            self._metrics.shadow_decisions.labels(DECISIONS[mine], DECISIONS[theirs]).inc()

    def _skip(self, reason: str, n: int) -> None:
        self._metrics.shadow_skipped.labels(reason).inc(n)
