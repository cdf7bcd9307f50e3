"""Who may come in: API keys and tokens, their scopes, their rate limits."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers

from flagger.errors import ConfigurationError, StateStoreError
from flagger.settings import Settings
from gateway.deadline import Clock
from gateway.keys import KEY_PREFIX, SCOPES, KeyFile
from gateway.problems import ProblemError
from gateway.state import AsyncStateStore
from gateway.tokens import TokenVerifier

__all__ = ["Caller", "Guard"]

FOLLOW_INTERVAL_S = 1.0
"""How often the file of keys is looked at: a revoked key is refused within about this."""
_LIMIT_TIMEOUT_MS = 10.0
_MIN_BURST = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        id: Key id, `sub` of a token, or `anybody`.
        scopes: What it may do.
        rate_per_s: Its rate limit; None: none.
        counted_as: Name of its count, so that a subject called like a key does not share the key's.
    """

    id: str
    scopes: tuple[str, ...]
    rate_per_s: float | None = None
    counted_as: str = ""


_ANYBODY = Caller("anybody", SCOPES)


class Guard:
    """Lets callers in.

    Args:
        settings: `gateway_auth`, `gateway_keys_file`, `gateway_jwt_*`.
        state: Where rate limits are counted, for all gateways together.
        clock: Where the time comes from.
        count_error: Called with the kind of a fault that a caller was let in in spite of.

    Raises:
        ConfigurationError: Nobody could come in, or the keys cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        state: AsyncStateStore,
        clock: Clock,
        count_error: Callable[[str], None],
    ) -> None:
        self._state = state
        self._clock = clock
        self._count_error = count_error
        self._keys = KeyFile.open(settings.gateway_keys_file)
        self._tokens = TokenVerifier(settings) if settings.gateway_jwt_jwks else None
        self._token_rate_per_s = settings.gateway_jwt_rate_per_s
        self._is_off = settings.gateway_auth == "off"
        if self._is_off:
            logger.warning(
                "FLAGGER_GATEWAY_AUTH=off: EVERYBODY may ask, label and administer. For "
                "development only."
            )
        elif not self._keys.keys and self._tokens is None:
            raise ConfigurationError(
                f"Nobody could ask this gateway: {self._keys.path} has no API keys. Make one with "
                f"`flagger keys create NAME`, name an identity provider "
                f"(FLAGGER_GATEWAY_JWT_JWKS), or, for development only, let everybody in with "
                f"FLAGGER_GATEWAY_AUTH=off."
            )

    async def admit(self, headers: Headers, scope: str) -> Caller:
        """Return who asks, if it may; counts one request.

        Args:
            headers: The request's headers.
            scope: What it wants to do.

        Raises:
            ProblemError: 401, 403 or 429.
        """
        if self._is_off:
            return _ANYBODY
        caller = self._identify(headers)
        if scope not in caller.scopes and "admin" not in caller.scopes:
            raise ProblemError("forbidden", f"This needs the scope {scope}.", who=caller.id)
        await self.count(caller, 1)
        return caller

    def _identify(self, headers: Headers) -> Caller:
        scheme, _, credential = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            credential = headers.get("x-api-key", "")
        if not credential:
            raise ProblemError("unauthenticated", "Send an API key: Authorization: Bearer ffk_...")
        if credential.startswith(KEY_PREFIX):
            key = self._keys.find(credential)
            if key is None:
                raise ProblemError("unauthenticated", "This key is not known.")
            state = key.state(self._clock.now_ms())
            if state != "valid":
                raise ProblemError("unauthenticated", f"This key is {state}.", who=key.id)
            return Caller(key.id, key.scopes, key.rate_per_s, key.id)
        found = self._tokens.verify(credential) if self._tokens is not None else None
        if found is None:
            raise ProblemError("unauthenticated", "This key or token is not valid.")
        subject, scopes = found
        digest = hashlib.sha256(subject.encode()).hexdigest()  # names may be long, and people's
        return Caller(subject, scopes, self._token_rate_per_s, f"jwt:{digest}")

    async def count(self, caller: Caller, requests: int) -> None:
        """Count requests of a caller; raises ProblemError 429 where they are too many."""
        per_s = caller.rate_per_s
        if per_s is None or requests < 1:
            return
        try:
            wait_ms = await self._state.wait_ms(
                caller.counted_as, per_s, max(per_s, _MIN_BURST), requests, _LIMIT_TIMEOUT_MS
            )
        except StateStoreError:  # the limit on requests in flight still holds
            self._count_error("rate_unchecked")
            return
        if wait_ms:
            raise ProblemError(
                "rate_limited",
                f"This key or token may send {per_s:g} requests per second.",
                retry_after_s=-(-wait_ms // 1000),
                who=caller.id,
            )

    async def follow(self) -> None:
        """Follow the keys for ever; what cannot be read leaves the keys as they were."""
        following = [self._follow(self._keys.refresh)]
        if self._tokens is not None:  # on its own: a slow provider delays no revocation
            following.append(self._follow(self._tokens.refresh))
        await asyncio.gather(*following)

    async def _follow(self, refresh: Callable[[], object]) -> None:
        complaint = ""
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            try:
                await asyncio.to_thread(refresh)
                complaint = ""
            except ConfigurationError as error:
                if str(error) != complaint:
                    complaint = str(error)
                    logger.error("Going on with the keys read before: %s", complaint)
