"""A gateway from start to end: connections, followers of files, and what the routes need."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from flagger.brakes import BrakeLimits, Brakes
from flagger.live_rulebook import LiveRulebook
from flagger.rules import RuleSet
from flagger.settings import Settings
from flagger.tracing import Tracing
from gateway.audit import AuditLog
from gateway.backends import Backends
from gateway.canary import GatewayCanary
from gateway.deadline import Clock
from gateway.door import Door
from gateway.fallback import Fallback
from gateway.guard import Guard
from gateway.live import Serving
from gateway.metrics import GatewayMetrics
from gateway.overrule import follow_rulebook
from gateway.readiness import Readiness
from gateway.service import ScoringService
from gateway.shadow import GatewayShadow

__all__ = ["open_door"]

_GC_THRESHOLD = 50_000
"""New objects between two collections of the young ones: a hundred requests' worth."""


@contextlib.asynccontextmanager
async def open_door(
    settings: Settings, clock: Clock, connect: Callable[[Settings], Awaitable[Backends]]
) -> AsyncIterator[Door]:
    """Connect, follow keys, models and rules while the block runs, then close everything.

    Args:
        settings: With all three addresses.
        clock: Where the time comes from.
        connect: Makes the connections, on the running loop.

    Yields:
        What the routes need.

    Raises:
        ConfigurationError: The gateway cannot start.
    """
    async with contextlib.AsyncExitStack() as ending:
        backends = await connect(settings)
        ending.push_async_callback(backends.close)
        door = await _make_door(settings, clock, backends)
        if door.tracing is not None:
            ending.push_async_callback(asyncio.to_thread, door.tracing.close)
        if door.shadow is not None:
            ending.push_async_callback(door.shadow.close)
        ending.push_async_callback(_stop, [asyncio.create_task(f) for f in _followers(door)])
        # What is loaded stays: a full collection that looks through it takes 60 ms.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        yield door


async def _make_door(settings: Settings, clock: Clock, backends: Backends) -> Door:
    metrics = GatewayMetrics()
    brakes = Brakes(BrakeLimits.of(settings), metrics.braked.inc)
    _show_model(backends, metrics, brakes)
    return Door(
        budget_ms=settings.gateway_deadline_ms,
        batch_budget_ms=settings.gateway_batch_deadline_ms,
        max_in_flight=settings.gateway_max_in_flight,
        repository=settings.model_repository,
        backends=backends,
        service=ScoringService(
            backends,
            clock,
            metrics.count_error,
            Fallback(settings.gateway_fallback, RuleSet.load(settings.fallback_rules)),
            brakes,
            await asyncio.to_thread(LiveRulebook, settings.rulebook),
            GatewayCanary.of(backends, settings, metrics),
        ),
        metrics=metrics,
        clock=clock,
        guard=Guard(settings, backends.state, clock, metrics.count_error),
        audit=AuditLog(settings.gateway_audit_log),
        readiness=Readiness(backends, clock.monotonic_s),
        tracing=Tracing.of(settings, "flagger-gateway"),
        shadow=GatewayShadow.of(backends, settings, metrics, clock),
    )


def _show_model(backends: Backends, metrics: GatewayMetrics, brakes: Brakes) -> None:
    """Show the live model, now and after each switch, which also frees the brakes."""

    def show(serving: Serving) -> None:
        metrics.set_model(serving.model.name, serving.model.version)

    def switched(serving: Serving) -> None:
        show(serving)
        brakes.reset()

    show(backends.live.current)
    backends.live.on_switch = switched


def _followers(door: Door) -> list[Coroutine[Any, Any, None]]:
    """Return what goes on as long as the gateway runs."""
    followers = [
        door.backends.live.follow(),
        door.guard.follow(),
        follow_rulebook(door.service.rulebook),
    ]
    if door.service.canary is not None:
        followers.append(door.service.canary.follow())
    if door.shadow is not None:
        followers.append(door.shadow.follow())
    return followers


async def _stop(followers: list[asyncio.Task[None]]) -> None:
    for follower in followers:
        follower.cancel()
    await asyncio.gather(*followers, return_exceptions=True)
