"""What is kept of each request: in Valkey for every replica, and here for repeats without it.

Every step has its share of the request's deadline. One that fails is counted, and the caller is
answered without it: see `service` for what that means.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from flagger.errors import StateStoreError
from gateway.answers import Claim
from gateway.breaker import Breaker
from gateway.deadline import ANSWER_SHARE, CLAIM_SHARE, STATE_SHARE
from gateway.request import ScoringRequest
from gateway.state import AsyncStateStore, SeenState, StoredClaim

__all__ = ["MAX_RECENT", "Claims"]

_REPEAT_SHARE = 0.1
"""How long a repeat waits for the first request to finish its write before it writes itself."""
_REPEAT_POLL_S = 0.004
MAX_RECENT = 10_000
"""Most decisions remembered here, for repeats without Valkey, the newest ones; some 10 MB."""


class Claims:
    """The steps of a request that read or write what is stored.

    Args:
        state: Valkey.
        breaker: Valkey's; is told how it went.
        count_error: Called with the kind of each fault that a decision is made in spite of.
    """

    def __init__(
        self, state: AsyncStateStore, breaker: Breaker, count_error: Callable[[str], None]
    ) -> None:
        self._state = state
        self._breaker = breaker
        self._count_error = count_error
        self._recent: dict[int, StoredClaim] = {}

    async def admit(self, request: ScoringRequest) -> SeenState | None:
        """Accept the transaction and return what its decision needs; None: Valkey is away."""
        is_asked = self._breaker.allows()
        try:
            if not is_asked:
                raise StateStoreError("Valkey does not answer; it is asked again within a second.")
            limit_ms = request.deadline.limit_ms(STATE_SHARE)
            seen = await self._state.admit(request.batch, limit_ms)
        except StateStoreError:
            if is_asked and not request.deadline.is_shortened:
                self._breaker.failed()
            self._count_error("state_unavailable")
            return None
        finally:
            request.stopwatch.lap("state")
        self._breaker.succeeded()
        return seen

    def earlier(self, request: ScoringRequest, seen: SeenState | None) -> StoredClaim | None:
        """Return the decision of an earlier request with the same id, if one is kept."""
        return (seen and seen.stored) or self._recent.get(request.key)

    async def forget(self, request: ScoringRequest) -> None:
        """Take back the acceptance of what will not be written; else it expires."""
        if not self._breaker.is_open:
            with contextlib.suppress(StateStoreError):
                await self._state.forget(request.batch, request.deadline.limit_ms(CLAIM_SHARE))

    async def claim(self, request: ScoringRequest, claim: Claim) -> StoredClaim | None:
        """Store a decision, also where the state was slow.

        Returns what is stored from now on, this decision or one that was there first; None: Valkey
        does not say.
        """
        try:
            limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
            if self._breaker.is_open:
                raise StateStoreError("Valkey does not answer.")
            first = await self._state.claim(request.batch, claim, limit_ms)
            return first or StoredClaim(claim, written=False)
        except StateStoreError:
            # The claim may be stored or not: writing this very decision is right in both cases.
            self._count_error("claim_failed")
            return None
        finally:
            request.stopwatch.lap("claim")

    def remember(self, request: ScoringRequest, claim: Claim, *, written: bool) -> None:
        """Keep a decision in this process."""
        if request.key not in self._recent and len(self._recent) >= MAX_RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[request.key] = StoredClaim(claim, written)

    async def is_written_soon(self, request: ScoringRequest) -> bool:
        """Return True once the request that claimed first has finished its write."""
        patience_ms = request.deadline.elapsed_ms + request.deadline.limit_ms(_REPEAT_SHARE)
        with contextlib.suppress(StateStoreError):
            while request.deadline.elapsed_ms < patience_ms:
                await asyncio.sleep(_REPEAT_POLL_S)
                limit_ms = request.deadline.limit_ms(CLAIM_SHARE)
                stored = await self._state.read_claim(request.batch.transaction_key, limit_ms)
                if stored is not None and stored.written:
                    return True
        return False

    async def mark_written(
        self,
        request: ScoringRequest,
        claim: Claim,
        seen: SeenState | None,
        position: tuple[int, int],
        *,
        is_claimed: bool = True,
    ) -> StoredClaim | None:
        """Keep that the log holds a decision, and where (partition, offset).

        Returns another one that the log had before, which nobody saw while Valkey was slow: it is
        the first, and the streamer drops the second. For this answer a decision that could not be
        claimed waits as long as the deadline allows: the caller may have been told the first.
        """
        self.remember(request, claim, written=True)
        if self._breaker.is_open:
            return None
        try:
            limit_ms = (
                request.deadline.limit_ms(CLAIM_SHARE)
                if is_claimed
                else request.deadline.limit_ms(keep_share=ANSWER_SHARE)
            )
            pending = None if seen is None else seen.pending
            first = await self._state.mark_written(
                request.batch, claim, pending, position, limit_ms
            )
        except StateStoreError:  # elsewhere a repeat writes once more and the streamer drops it
            self._count_error("mark_failed")
            return None
        finally:
            request.stopwatch.lap("mark")
        if first is None or first.claim == claim or first.claim.body_hash != claim.body_hash:
            return None
        self.remember(request, first.claim, written=True)
        return first
