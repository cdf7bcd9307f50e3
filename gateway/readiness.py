"""Is all there that decisions need? Found out for everybody who asks, once a second at most."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from flagger.errors import StateStoreError
from gateway.backends import PROBE_TIMEOUT_S, Backends
from gateway.producer import TransactionLogError

__all__ = ["SHARED_S", "Readiness"]

SHARED_S = 1.0
"""How long one check answers all who ask. It costs four calls and a thread, and whoever reaches the
port may ask without a key."""


class Readiness:
    """What is missing for work.

    Args:
        backends: What is checked.
        monotonic_s: The clock.
    """

    def __init__(self, backends: Backends, monotonic_s: Callable[[], float]) -> None:
        self._backends = backends
        self._monotonic_s = monotonic_s
        self._check: asyncio.Task[dict[str, str]] | None = None
        self._begun_s = 0.0

    async def missing(self) -> dict[str, str]:
        """Return what is missing, `kafka`, `valkey`, `triton` or `model`, and why."""
        now_s = self._monotonic_s()
        if self._check is None or (self._check.done() and now_s - self._begun_s >= SHARED_S):
            self._check, self._begun_s = asyncio.create_task(_find_missing(self._backends)), now_s
        return dict(await asyncio.shield(self._check))  # who gives up waiting ends it for nobody


async def _find_missing(backends: Backends) -> dict[str, str]:
    """Return what is missing for work: `kafka`, `valkey`, `triton` or `model`, and why."""

    async def kafka() -> str | None:
        try:
            await backends.log.check(PROBE_TIMEOUT_S)
        except TransactionLogError as error:
            return str(error)
        return backends.log.fatal

    async def valkey() -> str | None:
        try:
            await backends.state.ping(PROBE_TIMEOUT_S * 1000)
        except StateStoreError as error:
            return str(error)
        return None

    async def triton() -> str | None:
        return None if await backends.scorer.is_live() else "Triton does not answer."

    async def model() -> str | None:
        wanted = backends.live.current.model
        if await backends.scorer.is_ready(wanted):
            return None
        return f"Triton does not serve {wanted.name} version {wanted.version}."

    checks = {"kafka": kafka, "valkey": valkey, "triton": triton, "model": model}
    found = await asyncio.gather(*(check() for check in checks.values()))
    return {name: why for name, why in zip(checks, found, strict=True) if why is not None}
