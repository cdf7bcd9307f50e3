"""What every route needs, and how an error becomes an answer."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from flagger.tracing import Tracing
from gateway.audit import AuditLog
from gateway.backends import Backends
from gateway.deadline import Clock, Deadline
from gateway.guard import Guard
from gateway.metrics import GatewayMetrics
from gateway.problems import ProblemError
from gateway.readiness import Readiness
from gateway.service import ScoringService
from gateway.shadow import GatewayShadow

__all__ = [
    "DEADLINE_HEADER",
    "Door",
    "answer_or_problem",
    "deadline_of",
    "json",
    "problem_of",
    "read_body",
]

DEADLINE_HEADER = "X-Deadline-Ms"
"""A caller's own budget in milliseconds; the gateway's is the most it gets."""
MIN_DEADLINE_MS = 5.0
BODY_LIMIT_S = 5.0
"""How long a body may take to arrive where no deadline is smaller."""

logger = logging.getLogger(__name__)


@dataclass
class Door:
    """What the routes need; in `app.state.door` while the gateway runs.

    Attributes:
        budget_ms: Deadline of each scoring request.
        batch_budget_ms: Deadline of each batch.
        max_in_flight: Most scoring requests being worked on.
        repository: The model repository.
        backends: Kafka, Valkey, Triton and the live model.
        service: Decides.
        metrics: Counts.
        clock: Where the time comes from.
        guard: Lets callers in.
        audit: Takes administrative actions.
        readiness: Knows what is missing.
        tracing: Makes spans; None: traces are off.
        shadow: Compares a candidate with what was answered; None: nothing does.
        in_flight: Scoring requests being worked on.
        batches: Batches being worked on.
        draining: True after SIGTERM.
    """

    budget_ms: float
    batch_budget_ms: float
    max_in_flight: int
    repository: Path
    backends: Backends
    service: ScoringService
    metrics: GatewayMetrics
    clock: Clock
    guard: Guard
    audit: AuditLog
    readiness: Readiness
    tracing: Tracing | None = None
    shadow: GatewayShadow | None = None
    in_flight: int = 0
    batches: int = 0
    draining: bool = False


async def answer_or_problem(
    door: Door, route: str, answering: Coroutine[Any, Any, Response]
) -> Response:
    """Return the answer, or what the caller is told where there is none; counts both."""
    try:
        response = await answering
    except Exception as error:
        response = problem_of(door, error).response()
    door.metrics.responses.labels(route, str(response.status_code)).inc()
    return response


def problem_of(door: Door, error: Exception) -> ProblemError:
    """Return what the caller is told of an error; counts it, and logs a fault of ours."""
    if not isinstance(error, ProblemError):
        # Neither the caller nor the log gets the text: it may hold ids.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("Internal error, %s:\n%s", type(error).__name__, frames)
        error = ProblemError("internal", "The error was logged.")
    door.metrics.count_error(error.kind)
    return error


def deadline_of(request: Request, door: Door, budget_ms: float) -> Deadline:
    """Return the request's deadline: the caller's if it is smaller than ours.

    Raises:
        ProblemError: The header is no number of milliseconds.
    """
    asked = request.headers.get(DEADLINE_HEADER)
    if asked is None:
        return Deadline(budget_ms, door.clock)
    try:
        asked_ms = float(asked)
    except ValueError:
        asked_ms = -1.0
    if not asked_ms >= MIN_DEADLINE_MS:  # also NaN
        raise ProblemError(
            "bad_request",
            f"{DEADLINE_HEADER} is a number of milliseconds, at least {MIN_DEADLINE_MS:g}.",
        )
    is_shortened = asked_ms < budget_ms
    return Deadline(min(asked_ms, budget_ms), door.clock, is_shortened=is_shortened)


async def read_body(request: Request, limit: int, timeout_s: float) -> bytes:
    """Return the body of a JSON request.

    Args:
        request: The request.
        limit: Most bytes.
        timeout_s: How long it may take to arrive.

    Raises:
        ProblemError: Not JSON, too large, too slow or cut off.
    """
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ProblemError("unsupported_media_type", "Send application/json.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ProblemError("unsupported_media_type", "Send it without Content-Encoding.")
    too_large = ProblemError("too_large", f"The body has at most {limit:,} bytes.")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = b""
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except ClientDisconnect:
        raise ProblemError("disconnected", "The connection closed within the request.") from None
    except TimeoutError:
        raise ProblemError("slow_request", "The body took too long to arrive.") from None
    return body


def json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a JSON answer."""
    return Response(
        msgspec.json.encode(body), status, media_type="application/json", headers=headers
    )
