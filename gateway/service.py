"""One transaction in, one decision out, inside the deadline: the order of the steps.

    accept -> (repeat? give the first answer) -> features -> model -> policy
           -> claim in Valkey -> write to Kafka -> mark as written -> answer

To accept is one step in Valkey that also reads the state: from then on every later request of the
customer counts this transaction, on any replica (see `pending`). The decision is stored before it
is written, so that whoever asks again after a crash or a 503 gets the same decision and completes
the write; the streamer drops what was written twice. What the caller is told with status 200 is
always in the log.

Without Valkey there is no history and no claim: the answer is then the fallback, and only this
process remembers it for repeats. Without an answer of the model in time: the fallback too.
Without Kafka there is no answer but 503, because nobody else would ever hear of the decision.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from flagger.brakes import BrakeLimits, Brakes
from flagger.errors import ModelError, ModelUnavailableError, StateStoreError
from flagger.features import DUPLICATE, FeatureRows
from flagger.live_rulebook import LiveRulebook
from flagger.wire.messages import Decision
from gateway.answers import Answer, Claim, with_decision
from gateway.backends import Backends
from gateway.breaker import Breaker
from gateway.canary import Asked, GatewayCanary, Scored, ask_either, settle
from gateway.deadline import (
    ANSWER_SHARE,
    CLAIM_SHARE,
    LOG_SHARE,
    STATE_SHARE,
    Clock,
    Deadline,
    Stopwatch,
)
from gateway.explain import add_reasons
from gateway.fallback import Fallback
from gateway.overrule import overrule_decision
from gateway.problems import ProblemError
from gateway.producer import TransactionLogError
from gateway.request import ScoringRequest
from gateway.state import SeenState, StoredClaim

__all__ = ["Reply", "ScoringService"]

_REPEAT_SHARE = 0.1
"""How long a repeat waits for the first request to finish its write before it writes itself."""
_REPEAT_POLL_S = 0.004
MAX_RECENT = 10_000
"""Most decisions remembered here, for repeats without Valkey, the newest ones; some 10 MB."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the caller is answered.

    Attributes:
        answer: The decision.
        is_replay: True if it was made by an earlier request.
        scored: What it was made of; None: of no model's answer, or in an earlier request.
    """

    answer: Answer
    is_replay: bool
    scored: Scored | None = None


class ScoringService:
    """Decides transactions one by one; many may be under way on the event loop.

    Args:
        backends: Valkey, Triton, Kafka and the live model.
        clock: Where the time comes from.
        count_error: Called with the kind of each fault that a decision was made in spite of.
        fallback: Decides where the model cannot.
        brakes: Turn the model's declines into reviews while there are far too many.
        rulebook: Lists and rules beside the model.

    Attributes:
        breakers: `valkey`, `triton` and `kafka`.
    """

    def __init__(
        self,
        backends: Backends,
        clock: Clock,
        count_error: Callable[[str], None],
        fallback: Fallback | None = None,
        brakes: Brakes | None = None,
        rulebook: LiveRulebook | None = None,
        canary: GatewayCanary | None = None,
    ) -> None:
        self._backends = backends
        self._clock = clock
        self._count_error = count_error
        self._fallback = fallback or Fallback()
        self.brakes = brakes or Brakes(BrakeLimits())
        self.rulebook = rulebook or LiveRulebook(None)
        self.breakers = {name: Breaker(clock.monotonic_s) for name in ("valkey", "triton", "kafka")}
        self._canary = canary
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
        seen = await self._admit(request)
        earlier = (seen and seen.stored) or self._recent.get(request.key)
        if earlier is not None:
            return await self._repeat(request, earlier)
        await self._require_log(request)
        features = scored = None
        if seen is None:
            decision = self._fallback.decide(request, "the customer's history could not be read")
        elif seen.pending is None:
            self._count_error("customer_full")
            decision = self._fallback.decide(request, "too many payments of the customer at once")
        else:
            decision, features, scored = await self._score(request, seen)
        overrule_decision(decision, self.rulebook.current, request.batch, features)
        claim = request.claim_of(decision)
        # Also where the state could not be read: it may have been slow only.
        earlier = await self._claim(request, claim)
        if earlier is not None:
            return await self._repeat(request, earlier, accepted=True)
        # Kafka may take it and say so too late, and Valkey may lack the claim.
        self._remember(request, claim, written=False)
        position = await self._write(request, decision)
        self._remember(request, claim, written=True)
        await self._mark_written(request, claim, seen, position)
        return Reply(Answer.of(decision, decision.transaction_id), is_replay=False, scored=scored)

    def _remember(self, request: ScoringRequest, claim: Claim, *, written: bool) -> None:
        if request.key not in self._recent and len(self._recent) >= MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[request.key] = StoredClaim(claim, written)

    async def _require_log(self, request: ScoringRequest) -> None:
        """Answer at once while Kafka is away; one request a second finds out if it still is."""
        if not self.breakers["kafka"].allows():
            await self._forget(request)
            raise ProblemError("log_unavailable", "Kafka does not answer. Send it again later.")

    async def _admit(self, request: ScoringRequest) -> SeenState | None:
        breaker = self.breakers["valkey"]
        is_asked = breaker.allows()
        try:
            if not is_asked:
                raise StateStoreError("Valkey does not answer; it is asked again within a second.")
            limit_ms = request.deadline.limit_ms(STATE_SHARE)
            seen = await self._backends.state.admit(request.batch, limit_ms)
        except StateStoreError:
            if is_asked and not request.deadline.is_shortened:
                breaker.failed()
            self._count_error("state_unavailable")
            return None
        finally:
            request.stopwatch.lap("state")
        breaker.succeeded()
        return seen

    async def _score(
        self, request: ScoringRequest, seen: SeenState
    ) -> tuple[Decision, FeatureRows, Scored | None]:
        serving = self._backends.live.current
        batch = request.batch if seen.pending is None else seen.pending.followed_by(request.batch)
        features = serving.engine.process_detached(batch, seen.customers, seen.terminals)
        request.stopwatch.lap("features")
        if features.flags[-1] & DUPLICATE:
            await self._forget(request)
            raise ProblemError(
                "decided_by_stream",
                "A transaction with this id came over Kafka or more than a day ago. Its decision "
                "is on the decisions topic.",
            )
        scorer, breaker = self._backends.scorer, self.breakers["triton"]
        asked = Asked(request, serving, features.rows[-1:])
        try:
            scored = await ask_either(asked, self._canary, scorer, breaker)
        except ModelError as error:
            away = isinstance(error, ModelUnavailableError)
            self._count_error("model_unavailable" if away else "model_refused")
            why = "the model did not answer in time" if away else "the model refused the request"
            return self._fallback.decide(request, why, features), features, None
        finally:
            request.stopwatch.lap("model")
        decision = request.decided(scored.serving, scored.score, features)
        left_ms = request.deadline.left_ms(keep_share=LOG_SHARE)
        if not await add_reasons(decision, scored.row, scored.serving, scorer, left_ms):
            self._count_error("unexplained")
        settle(decision, scored, self.brakes, self._canary)
        decision.latency_ms = round(request.deadline.elapsed_ms, 3)
        request.stopwatch.lap("explain")
        return decision, features, scored

    async def _forget(self, request: ScoringRequest) -> None:
        """Take back the acceptance of what will not be written; else it expires."""
        if not self.breakers["valkey"].is_open:
            with contextlib.suppress(StateStoreError):
                limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
                await self._backends.state.forget(request.batch, limit_ms)

    async def _claim(self, request: ScoringRequest, claim: Claim) -> StoredClaim | None:
        try:
            limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
            if self.breakers["valkey"].is_open:
                raise StateStoreError("Valkey does not answer.")
            return await self._backends.state.claim(request.batch, claim, limit_ms)
        except StateStoreError:
            # The claim may be stored or not: writing this very decision is right in both cases.
            self._count_error("claim_failed")
            return None
        finally:
            request.stopwatch.lap("claim")

    async def _repeat(
        self, request: ScoringRequest, stored: StoredClaim, *, accepted: bool = False
    ) -> Reply:
        if stored.claim.body_hash != request.body_hash:
            # The same customer's place is the earlier request's, too: it counts there.
            if accepted and stored.claim.customer_key != request.customer_key:
                await self._forget(request)
            raise ProblemError(
                "id_reused",
                "An earlier request with this transaction_id had other values. Send each "
                "transaction under its own id, and repeats unchanged.",
            )
        decision = stored.claim.decision_on(request.transaction)
        if not stored.written and not await self._is_written_soon(request):
            position = await self._write(request, decision)
            self._remember(request, stored.claim, written=True)
            await self._mark_written(request, stored.claim, None, position)
        return Reply(Answer.of(decision, decision.transaction_id), is_replay=True)

    async def _is_written_soon(self, request: ScoringRequest) -> bool:
        """Return True once the request that claimed first has finished its write."""
        patience_ms = request.deadline.elapsed_ms + request.deadline.limit_ms(_REPEAT_SHARE)
        with contextlib.suppress(StateStoreError):
            while request.deadline.elapsed_ms < patience_ms:
                await asyncio.sleep(_REPEAT_POLL_S)
                limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
                stored = await self._backends.state.read_claim(
                    request.batch.transaction_key, limit_ms
                )
                if stored is not None and stored.written:
                    return True
        return False

    async def _write(self, request: ScoringRequest, decision: Decision) -> tuple[int, int]:
        key, value = request.transaction.customer_id.encode(), with_decision(request.raw, decision)
        breaker = self.breakers["kafka"]
        try:
            limit_ms = request.deadline.limit_ms(keep_share=ANSWER_SHARE)
            position = await self._backends.log.write(key, value, limit_ms)
        except TransactionLogError as error:
            if not request.deadline.is_shortened:
                breaker.failed()
            raise ProblemError(
                "log_unavailable",
                "Kafka did not acknowledge the decision in time. Send the same request again: "
                "it gets one decision, however often it is sent.",
            ) from error
        finally:
            request.stopwatch.lap("log")
        breaker.succeeded()
        return position

    async def _mark_written(
        self,
        request: ScoringRequest,
        claim: Claim,
        seen: SeenState | None,
        position: tuple[int, int],
    ) -> None:
        if self.breakers["valkey"].is_open:
            return
        try:
            limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
            pending = None if seen is None else seen.pending
            await self._backends.state.mark_written(
                request.batch, claim, pending, position, limit_ms
            )
        except StateStoreError:  # elsewhere a repeat writes once more and the streamer drops it
            self._count_error("mark_failed")
        finally:
            request.stopwatch.lap("mark")
