"""One transaction in, one decision out, inside the deadline: the order of the steps.

    read state -> (repeat? give the first answer) -> features -> model -> policy
               -> claim in Valkey -> write to Kafka -> mark as written -> answer

The decision is stored before it is written, so that whoever asks again after a crash or a 503
gets the same decision and completes the write; the streamer drops what was written twice. What
the caller is told with status 200 is always in the log.

Without Valkey there is no history and no claim: the answer is then the fallback, and only this
process remembers it for repeats. Without an answer of the model in time: the fallback too.
Without Kafka there is no answer but 503, because nobody else would ever hear of the decision.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelError, ModelRefusedError, ModelUnavailableError, StateStoreError
from flagger.features import DUPLICATE
from flagger.wire.messages import Decision
from gateway.answers import Answer, Claim, with_decision
from gateway.backends import Backends
from gateway.deadline import (
    ANSWER_SHARE,
    CLAIM_SHARE,
    LOG_SHARE,
    MIN_MODEL_MS,
    STATE_SHARE,
    Clock,
    Deadline,
    Stopwatch,
)
from gateway.live import Serving
from gateway.problems import ProblemError
from gateway.producer import TransactionLogError
from gateway.request import ScoringRequest
from gateway.state import SeenState, StoredClaim

__all__ = ["Reply", "ScoringService"]

_REPEAT_SHARE = 0.1
"""How long a repeat waits for the first request to finish its write before it writes itself."""
_REPEAT_POLL_S = 0.004
MAX_RECENT = 10_000
"""Most decisions remembered in the process, for repeats while Valkey is slow or away; the oldest
make room: ten seconds at 1,000 requests/s, some 10 MB."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the caller is answered.

    Attributes:
        answer: The decision.
        is_replay: True if it was made by an earlier request.
    """

    answer: Answer
    is_replay: bool


class ScoringService:
    """Decides transactions one by one; many may be under way on the event loop.

    Args:
        backends: Valkey, Triton, Kafka and the live model.
        clock: Where the time comes from.
        count_error: Called with the kind of each fault that a decision was made in spite of.
    """

    def __init__(
        self, backends: Backends, clock: Clock, count_error: Callable[[str], None]
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._count_error = count_error
        self._recent: dict[int, StoredClaim] = {}

    async def decide(self, raw: bytes, deadline: Deadline, stopwatch: Stopwatch) -> Reply:
        """Decide one transaction and record the decision.

        Args:
            raw: The JSON body.
            deadline: The request's budget; the answer comes within it.
            stopwatch: Takes the times of the stages.

        Raises:
            ProblemError: There is no decision; the error is what the caller is told.
        """
        request = ScoringRequest.parse(raw, self._clock.now_ms(), deadline, stopwatch)
        seen = await self._read_state(request)
        key = int(request.batch.transaction_key[0])
        earlier = (seen and seen.stored) or self._recent.get(key)
        if earlier is not None:
            return await self._repeat(request, earlier)
        if seen is None:
            decision = request.fallback("the customer's history could not be read")
        else:
            decision = await self._score(request, seen)
        claim = Claim.of(decision, request.body_hash)
        # Also where the state could not be read: that may have been slow and not away.
        earlier = await self._claim(request, claim)
        if earlier is not None:
            return await self._repeat(request, earlier)
        await self._write(request, decision)
        self._remember(key, claim)
        await self._mark_written(request, claim)
        return Reply(Answer.of(decision), is_replay=False)

    def _remember(self, key: int, claim: Claim) -> None:
        if len(self._recent) >= MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[key] = StoredClaim(claim, written=True)

    async def _read_state(self, request: ScoringRequest) -> SeenState | None:
        try:
            limit_ms = request.deadline.limit_ms(STATE_SHARE)
            return await self._backends.state.read(request.batch, limit_ms)
        except StateStoreError:
            self._count_error("state_unavailable")
            return None
        finally:
            request.stopwatch.lap("state")

    async def _score(self, request: ScoringRequest, seen: SeenState) -> Decision:
        serving = self._backends.live.current
        features = serving.engine.process_detached(request.batch, seen.customers, seen.terminals)
        request.stopwatch.lap("features")
        if features.flags[0] & DUPLICATE:
            raise ProblemError(
                "decided_by_stream",
                "A transaction with this id came over Kafka or more than a day ago. Its decision "
                "is on the decisions topic.",
            )
        try:
            score = await self._ask_model(features.rows, serving, request.deadline)
        except ModelUnavailableError:
            self._count_error("model_unavailable")
            return request.fallback("the model did not answer in time")
        except ModelError:
            self._count_error("model_refused")
            return request.fallback("the model refused the request")
        finally:
            request.stopwatch.lap("model")
        return request.decided(serving, score, features)

    async def _ask_model(
        self, rows: npt.NDArray[np.float32], serving: Serving, deadline: Deadline
    ) -> float:
        left_ms = deadline.left_ms(keep_share=LOG_SHARE)
        if left_ms < MIN_MODEL_MS:
            raise ModelUnavailableError(f"Only {left_ms:.1f} ms were left for the model.")
        try:
            async with asyncio.timeout(left_ms / 1000):
                scores = await self._backends.scorer.score(rows, serving.model, left_ms)
        except TimeoutError as error:
            raise ModelUnavailableError(f"No score within {left_ms:.1f} ms.") from error
        score = float(scores[0])
        if not 0.0 <= score <= 1.0:  # also NaN, which no threshold would catch
            raise ModelRefusedError(f"The model answered {score}, which is no probability.")
        return score

    async def _claim(self, request: ScoringRequest, claim: Claim) -> StoredClaim | None:
        try:
            limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
            return await self._backends.state.claim(request.batch, claim, limit_ms)
        except StateStoreError:
            # The claim may be stored or not: writing this very decision is right in both cases.
            self._count_error("claim_failed")
            return None
        finally:
            request.stopwatch.lap("claim")

    async def _repeat(self, request: ScoringRequest, stored: StoredClaim) -> Reply:
        if stored.claim.body_hash != request.body_hash:
            raise ProblemError(
                "id_reused",
                "An earlier request with this transaction_id had other values. Send each "
                "transaction under its own id, and repeats unchanged.",
            )
        decision = stored.claim.decision_on(request.transaction)
        if not stored.written and not await self._is_written_soon(request):
            await self._write(request, decision)
            await self._mark_written(request, stored.claim)
        return Reply(Answer.of(decision), is_replay=True)

    async def _is_written_soon(self, request: ScoringRequest) -> bool:
        """Return True once the request that claimed first has finished its write."""
        patience_ms = request.deadline.elapsed_ms + request.deadline.limit_ms(_REPEAT_SHARE)
        with contextlib.suppress(StateStoreError):
            while request.deadline.elapsed_ms < patience_ms:
                await asyncio.sleep(_REPEAT_POLL_S)
                limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
                stored = await self._backends.state.read_claim(request.batch, limit_ms)
                if stored is not None and stored.written:
                    return True
        return False

    async def _write(self, request: ScoringRequest, decision: Decision) -> None:
        key = request.transaction.customer_id.encode()
        value = with_decision(request.raw, decision)
        try:
            limit_ms = request.deadline.limit_ms(keep_share=ANSWER_SHARE)
            await self._backends.log.write(key, value, limit_ms)
        except TransactionLogError as error:
            raise ProblemError(
                "log_unavailable",
                "Kafka did not acknowledge the decision in time. Send the same request again: "
                "it gets one decision, however often it is sent.",
            ) from error
        finally:
            request.stopwatch.lap("log")

    async def _mark_written(self, request: ScoringRequest, claim: Claim) -> None:
        try:
            limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
            await self._backends.state.mark_written(request.batch, claim, limit_ms)
        except StateStoreError:  # elsewhere a repeat writes once more and the streamer drops it
            self._count_error("mark_failed")
        finally:
            request.stopwatch.lap("mark")
