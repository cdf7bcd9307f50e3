"""The canary at the gateway: chosen customers are decided by a candidate while it behaves.

The candidate is asked first and given up after `FLAGGER_CANARY_TIMEOUT_MS`, or half of the time
that is left for models: then the live version decides in time. The call that was given up ends by
itself.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flagger.brakes import BrakeLimits, Brakes
from flagger.canary import Canary, CanaryGuard
from flagger.errors import ModelError
from flagger.policy import APPROVE, DECISIONS
from flagger.recode import CategoryCodes
from flagger.settings import Settings
from flagger.trials import Attempts, end_canary
from flagger.wire.messages import Decision
from gateway.backends import Backends
from gateway.brake import hold_if_braked
from gateway.breaker import Breaker
from gateway.deadline import LOG_SHARE, MIN_MODEL_MS
from gateway.live import LiveModel, Serving
from gateway.metrics import GatewayMetrics
from gateway.model_call import ask_model
from gateway.ports import ModelScorer
from gateway.request import ScoringRequest
from gateway.trial import TrialFollower

__all__ = ["Asked", "GatewayCanary", "Scored", "ask_either", "settle"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is to score.

    Attributes:
        request: The transaction.
        serving: The live version.
        row: The feature row in its codes, float32 [1, F].
    """

    request: ScoringRequest
    serving: Serving
    row: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a model answered.

    Attributes:
        serving: The version that did.
        row: The feature row in its codes, float32 [1, F].
        score: Its score.
        is_candidate: True if it was the canary.
        category_keys: Keys of the transaction's categories, uint64 [1, 4].
    """

    serving: Serving
    row: npt.NDArray[np.float32]
    score: float
    is_candidate: bool
    category_keys: npt.NDArray[np.uint64]


async def ask_either(
    asked: Asked, canary: GatewayCanary | None, scorer: ModelScorer, breaker: Breaker
) -> Scored:
    """Return the canary's answer where the customer is its and it has one, else the live version's.

    Raises:
        ModelError: There is no score in time, or none that is a probability.
    """
    found = await canary.ask(asked, scorer) if canary is not None else None
    if found is not None:
        return found
    model, deadline = asked.serving.model, asked.request.deadline
    score = await ask_model(scorer, breaker, asked.row, model, deadline)
    keys = asked.request.batch.category_keys
    return Scored(asked.serving, asked.row, score, is_candidate=False, category_keys=keys)


def settle(
    decision: Decision, scored: Scored, brakes: Brakes, canary: GatewayCanary | None
) -> None:
    """Count a model's decision; turn it into a review where the brakes say so."""
    if canary is None:
        hold_if_braked(decision, brakes)
    else:
        canary.settle(decision, scored, brakes)


@dataclass(slots=True)
class _On:
    """A canary that is on."""

    canary: Canary
    serving: Serving
    codes: CategoryCodes
    guard: CanaryGuard


class GatewayCanary:
    """Follows the pointer's canary and asks it.

    Args:
        live: Loads and checks versions.
        repository: Folder of the model repository.
        brakes: Fresh brakes for a candidate.
        timeout_ms: How long the candidate may take.
        metrics: Where it shows.
    """

    def __init__(
        self,
        live: LiveModel,
        repository: Path,
        brakes: Brakes,
        timeout_ms: float,
        metrics: GatewayMetrics,
    ) -> None:
        self._repository = repository
        self._brakes = brakes
        self._timeout_ms = timeout_ms
        self._metrics = metrics
        self._trial = TrialFollower(
            live,
            repository,
            lambda pointer: pointer.canary,
            lambda canary: canary.version,
            self._begin,
            Attempts(),
        )
        self._ending: set[asyncio.Task[bool]] = set()

    @classmethod
    def of(cls, backends: Backends, settings: Settings, metrics: GatewayMetrics) -> GatewayCanary:
        """Return a gateway's canary."""
        return cls(
            backends.live,
            settings.model_repository,
            Brakes(BrakeLimits.of(settings), metrics.braked.inc),
            settings.canary_timeout_ms,
            metrics,
        )

    async def ask(self, asked: Asked, scorer: ModelScorer) -> Scored | None:
        """Return the candidate's answer; None: the live version decides."""
        on, request = self._trial.on, asked.request
        if on is None or not on.canary.chosen(request.batch.customer_key)[0]:
            return None
        left_ms = request.deadline.left_ms(keep_share=LOG_SHARE)
        patience_ms = min(self._timeout_ms, left_ms / 2)
        if patience_ms < MIN_MODEL_MS:
            return None
        keys = request.batch.category_keys
        own = on.codes.written(asked.row, keys)
        try:
            async with asyncio.timeout(patience_ms / 1000):
                scores = await scorer.score(own, on.serving.model, left_ms)
        except (TimeoutError, ModelError):
            self._metrics.canary_failures.inc()
            if not request.deadline.is_shortened:
                on.guard.note_request(failed=True)
            self._look(on)
            return None
        on.guard.note_request(failed=False)
        return Scored(on.serving, own, float(scores[0]), is_candidate=True, category_keys=keys)

    def settle(self, decision: Decision, scored: Scored, brakes: Brakes) -> None:
        """Count a model's decision; turn it into a review where the brakes say so.

        Args:
            decision: By the candidate or by the live version.
            scored: Whose score it was made of.
            brakes: The live version's.
        """
        on = self._trial.on
        hold_if_braked(decision, self._brakes if scored.is_candidate else brakes)
        if on is None or (scored.is_candidate and scored.serving is not on.serving):
            return
        group = "candidate" if scored.is_candidate else "live"
        self._metrics.canary_decisions.labels(group, decision.decision).inc()
        flagged = int(decision.decision != DECISIONS[APPROVE])
        on.guard.note_decisions(candidate=scored.is_candidate, decided=1, flagged=flagged)
        self._look(on)

    async def follow(self) -> None:
        """Begin and end for ever as the pointer says."""
        await self._trial.follow()

    def _begin(self, canary: Canary, serving: Serving) -> _On:
        self._brakes.reset()
        logger.warning("Version %s decides %.3g of the customers", canary.version, canary.share)
        return _On(canary, serving, CategoryCodes(serving.engine.contract), CanaryGuard())

    def _look(self, on: _On) -> None:
        """Stop if the guard says so."""
        why = on.guard.stop_reason()
        if why is None or self._trial.on is not on:
            return
        self._trial.end()
        self._metrics.canary_stopped.inc()
        logger.error("Canary of version %s stopped: %s", on.canary.version, why)
        by = "flagger gateway"
        task = asyncio.create_task(
            # So that the other doors stop too.
            asyncio.to_thread(end_canary, self._repository, on.canary, why=why, by=by)
        )
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
