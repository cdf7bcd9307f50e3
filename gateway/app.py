"""The ASGI application: routes, documentation, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from flagger import __version__
from flagger.settings import Settings
from gateway.backends import Backends, connect
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.live import Serving
from gateway.metrics import GatewayMetrics
from gateway.openapi import components
from gateway.problems import ProblemError
from gateway.routes import Door, router
from gateway.service import ScoringService

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
        backends = await connect(settings)
        metrics = GatewayMetrics()

        def show_model(serving: Serving) -> None:
            metrics.set_model(serving.model.name, serving.model.version)

        def count_error(kind: str) -> None:
            metrics.errors.labels(kind).inc()

        show_model(backends.live.current)
        app.state.door = Door(
            budget_ms=settings.gateway_deadline_ms,
            backends=backends,
            service=ScoringService(backends, clock, count_error),
            metrics=metrics,
            clock=clock,
        )
        follower = asyncio.create_task(backends.live.follow(show_model))
        # What is loaded stays: a full collection that looks through it takes 60 ms.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower
            await backends.close()

    app = FastAPI(
        title="Fraud Flagger gateway",
        version=__version__,
        summary="Approve, review or decline a payment within the deadline.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from a public CDN
        redoc_url=None,
    )
    app.include_router(router)
    app.add_exception_handler(HTTPException, _http_problem)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _http_problem(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return ProblemError(_HTTP_KINDS.get(status, "http"), status=status).response()


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            routes=app.routes,
        )
        document["components"] = {"schemas": components()}
        app.openapi_schema = document
    return app.openapi_schema
