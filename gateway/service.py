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

from collections.abc import Callable
from dataclasses import dataclass

from flagger.brakes import BrakeLimits, Brakes
from flagger.errors import ModelError, ModelUnavailableError
from flagger.features import DUPLICATE, FeatureRows
from flagger.live_rulebook import LiveRulebook
from flagger.wire.messages import Decision
from gateway.answers import Answer, with_decision
from gateway.backends import Backends
from gateway.breaker import Breaker
from gateway.canary import Asked, GatewayCanary, Scored, ask_either, settle
from gateway.claims import Claims
from gateway.deadline import ANSWER_SHARE, LOG_SHARE, Clock, Deadline, Stopwatch
from gateway.explain import add_reasons
from gateway.fallback import Fallback
from gateway.overrule import overrule_decision
from gateway.problems import ProblemError
from gateway.producer import TransactionLogError
from gateway.request import ScoringRequest
from gateway.state import SeenState, StoredClaim

__all__ = ["Reply", "ScoringService"]


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
        canary: Decides a share of the customers; None: none ever does.

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
        self.canary = canary
        self._claims = Claims(backends.state, self.breakers["valkey"], count_error)

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
        seen = await self._claims.admit(request)
        earlier = self._claims.earlier(request, seen)
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
        stored = await self._claims.claim(request, claim)
        if stored is not None and stored.claim is not claim:
            return await self._repeat(request, stored, accepted=True)
        # Kafka may take it and say so too late, and Valkey may lack the claim.
        self._claims.remember(request, claim, written=False)
        position = await self._write(request, decision)
        is_claimed = stored is not None
        earlier = await self._claims.mark_written(
            request, claim, seen, position, is_claimed=is_claimed
        )
        if earlier is not None:
            return await self._repeat(request, earlier, accepted=True)
        return Reply(Answer.of(decision, decision.transaction_id), is_replay=False, scored=scored)

    async def _require_log(self, request: ScoringRequest) -> None:
        """Answer at once while Kafka is away; one request a second finds out if it still is."""
        if not self.breakers["kafka"].allows():
            await self._claims.forget(request)
            raise ProblemError("log_unavailable", "Kafka does not answer. Send it again later.")

    async def _score(
        self, request: ScoringRequest, seen: SeenState
    ) -> tuple[Decision, FeatureRows, Scored | None]:
        serving = self._backends.live.current
        batch = request.batch if seen.pending is None else seen.pending.followed_by(request.batch)
        features = serving.engine.process_detached(batch, seen.customers, seen.terminals)
        request.stopwatch.lap("features")
        if features.flags[-1] & DUPLICATE:
            await self._claims.forget(request)
            raise ProblemError(
                "decided_by_stream",
                "A transaction with this id came over Kafka or more than a day ago. Its decision "
                "is on the decisions topic.",
            )
        scorer, breaker = self._backends.scorer, self.breakers["triton"]
        asked = Asked(request, serving, features.rows[-1:])
        try:
            scored = await ask_either(asked, self.canary, scorer, breaker)
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
        settle(decision, scored, self.brakes, self.canary)
        decision.latency_ms = round(request.deadline.elapsed_ms, 3)
        request.stopwatch.lap("explain")
        return decision, features, scored

    async def _repeat(
        self, request: ScoringRequest, stored: StoredClaim, *, accepted: bool = False
    ) -> Reply:
        if stored.claim.body_hash != request.body_hash:
            # The same customer's place is the earlier request's, too: it counts there.
            if accepted and stored.claim.customer_key != request.customer_key:
                await self._claims.forget(request)
            raise ProblemError(
                "id_reused",
                "An earlier request with this transaction_id had other values. Send each "
                "transaction under its own id, and repeats unchanged.",
            )
        decision = stored.claim.decision_on(request.transaction)
        if not stored.written and not await self._claims.is_written_soon(request):
            position = await self._write(request, decision)
            await self._claims.mark_written(request, stored.claim, None, position)
        return Reply(Answer.of(decision, decision.transaction_id), is_replay=True)

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
