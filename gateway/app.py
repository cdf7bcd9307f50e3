"""The ASGI application: routes, documentation, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from flagger import __version__
from flagger.brakes import BrakeLimits, Brakes
from flagger.errors import ConfigurationError
from flagger.live_rulebook import LiveRulebook
from flagger.rules import RuleSet
from flagger.settings import Settings
from flagger.tracing import Tracing
from gateway.audit import AuditLog
from gateway.backends import Backends, connect
from gateway.canary import GatewayCanary
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.door import Door
from gateway.fallback import Fallback
from gateway.guard import Guard
from gateway.headers import ALWAYS, AnswerHeaders
from gateway.live import Serving
from gateway.metrics import GatewayMetrics
from gateway.openapi import document
from gateway.overrule import follow_rulebook
from gateway.problems import ProblemError
from gateway.readiness import Readiness
from gateway.routes import ROUTES
from gateway.service import ScoringService
from gateway.shadow import GatewayShadow

__all__ = ["create_app"]

_HTTP_KINDS = {404: "not_found", 405: "method_not_allowed"}


def create_app(
    settings: Settings,
    *,
    clock: Clock = SYSTEM_CLOCK,
    connect: Callable[[Settings], Awaitable[Backends]] = connect,
) -> FastAPI:
    """Return the gateway; connections are made when it starts and closed when it stops.

    Args:
        settings: With all three addresses.
        clock: Where the time comes from.
        connect: Makes the connections, on the application's event loop.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backends = await _connected(app, settings, connect)
        metrics = GatewayMetrics()

        def show_model(serving: Serving) -> None:
            metrics.set_model(serving.model.name, serving.model.version)

        brakes = Brakes(BrakeLimits.of(settings), metrics.braked.inc)

        def switched(serving: Serving) -> None:
            show_model(serving)
            brakes.reset()

        backends.live.on_switch = switched

        def count_error(kind: str) -> None:
            metrics.errors.labels(kind).inc()

        try:
            guard = Guard(settings, backends.state, clock, count_error)
            fallback = Fallback(settings.gateway_fallback, RuleSet.load(settings.fallback_rules))
            rulebook = await asyncio.to_thread(LiveRulebook, settings.rulebook)
        except ConfigurationError as error:
            app.state.failure = error
            await backends.close()
            raise
        show_model(backends.live.current)
        canary = GatewayCanary(
            backends.live,
            settings.model_repository,
            Brakes(BrakeLimits.of(settings), metrics.braked.inc),
            settings.canary_timeout_ms,
            metrics,
        )
        shadow = GatewayShadow.of(backends, settings, metrics, clock)
        tracing = Tracing.of(settings, "flagger-gateway")
        app.state.door = Door(
            budget_ms=settings.gateway_deadline_ms,
            batch_budget_ms=settings.gateway_batch_deadline_ms,
            max_in_flight=settings.gateway_max_in_flight,
            repository=settings.model_repository,
            backends=backends,
            service=ScoringService(
                backends, clock, count_error, fallback, brakes, rulebook, canary
            ),
            metrics=metrics,
            clock=clock,
            guard=guard,
            audit=AuditLog(settings.gateway_audit_log),
            readiness=Readiness(backends, clock.monotonic_s),
            tracing=tracing,
            shadow=shadow,
        )
        followers = [
            asyncio.create_task(backends.live.follow()),
            asyncio.create_task(guard.follow()),
            asyncio.create_task(canary.follow()),
            asyncio.create_task(follow_rulebook(rulebook)),
        ]
        if shadow is not None:
            followers.append(asyncio.create_task(shadow.follow()))
        # What is loaded stays: a full collection that looks through it takes 60 ms.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            for follower in followers:
                follower.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
            if shadow is not None:
                await shadow.close()
            await backends.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    app = FastAPI(
        title="Fraud Flagger gateway",
        version=__version__,
        summary="Approve, review or decline a payment within the deadline.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a public CDN
        redoc_url=None,
        redirect_slashes=False,  # a POST that is sent elsewhere surprises more than a 404
    )
    app.state.failure = None
    for method, path, answer, _ in ROUTES:
        app.add_route(path, answer, methods=[method])
    app.add_middleware(AnswerHeaders)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(Exception, _internal_problem)
    app.openapi = lambda: document(app, ROUTES)  # type: ignore[method-assign]
    return app


async def _connected(
    app: FastAPI, settings: Settings, connect: Callable[[Settings], Awaitable[Backends]]
) -> Backends:
    """Connect; a reason not to start is kept for the command line, which uvicorn does not tell."""
    try:
        return await connect(settings)
    except ConfigurationError as error:
        app.state.failure = error
        raise


async def _http_problem(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    response = ProblemError(_HTTP_KINDS.get(status, "bad_request"), status=status).response()
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})  # a 405 says what is allowed
    return response


async def _internal_problem(_request: Request, _error: Exception) -> Response:
    """Answer for a route that has no answer of its own to this (probes, metrics)."""
    response = ProblemError("internal", "The error was logged.").response()
    response.headers.update({name.decode(): value.decode() for name, value in ALWAYS})
    return response
