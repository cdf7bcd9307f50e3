"""The ASGI application: routes, documentation, start and stop."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache, partial

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from flagger import __version__
from flagger.errors import ConfigurationError
from flagger.settings import Settings
from gateway.backends import Backends, connect
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.headers import ALWAYS, AnswerHeaders
from gateway.lifespan import open_door
from gateway.openapi import document
from gateway.problems import ProblemError
from gateway.routes import ROUTES

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
        async with contextlib.AsyncExitStack() as running:
            opening = open_door(settings, clock, connect)
            try:
                app.state.door = await running.enter_async_context(opening)
            except ConfigurationError as error:
                app.state.failure = error  # for the command line, which uvicorn does not tell
                raise
            yield

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
    # Made once: it takes milliseconds in which nobody else is answered, and needs no key.
    app.openapi = cache(partial(document, app, ROUTES))  # type: ignore[method-assign]
    return app


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
