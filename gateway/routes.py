"""The HTTP routes: read a request, hand it to the service, answer; nothing else."""

from __future__ import annotations

import logging
import traceback
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect

from flagger.wire.limits import MAX_MESSAGE_BYTES
from gateway.backends import Backends, find_missing
from gateway.deadline import Clock, Deadline, Stopwatch
from gateway.metrics import GatewayMetrics
from gateway.openapi import SCORE_OPERATION
from gateway.problems import ProblemError
from gateway.service import ScoringService

__all__ = ["MAX_IN_FLIGHT", "Door", "router"]

MAX_IN_FLIGHT = 128
"""Most scoring requests at a time. One process answers some hundreds per second, so a longer queue
could only hold requests that will miss their deadline; another gets 503 at once."""

logger = logging.getLogger(__name__)
router = APIRouter()


@dataclass
class Door:
    """What the routes need; in `app.state.door` while the gateway runs.

    Attributes:
        budget_ms: Deadline of each scoring request.
        backends: Kafka, Valkey, Triton and the live model.
        service: Decides.
        metrics: Counts.
        clock: Where the time comes from.
        in_flight: Scoring requests being worked on.
    """

    budget_ms: float
    backends: Backends
    service: ScoringService
    metrics: GatewayMetrics
    clock: Clock
    in_flight: int = 0


@router.post(
    "/v1/score",
    summary="Decide one transaction",
    description="Answers within the deadline: by the model, else by the configured default. The "
    "same transaction_id gets the same answer for a day.",
    openapi_extra=SCORE_OPERATION,
    response_class=Response,
)
async def score(request: Request) -> Response:
    """Decide one transaction."""
    door: Door = request.app.state.door
    deadline = Deadline(door.budget_ms, door.clock)
    stopwatch = Stopwatch(door.clock)
    outcome = "problem"
    door.in_flight += 1
    try:
        response, outcome = await _answer(request, door, deadline, stopwatch)
    except ProblemError as error:
        door.metrics.errors.labels(error.kind).inc()
        response = error.response()
    except Exception as error:
        # Neither the caller nor the log gets the text: it may hold ids.
        frames = "".join(traceback.format_tb(error.__traceback__))
        logger.error("Internal error, %s:\n%s", type(error).__name__, frames)
        door.metrics.errors.labels("internal").inc()
        response = ProblemError("internal", "The error was logged.").response()
    finally:
        door.in_flight -= 1
    door.metrics.request_seconds[outcome].observe(deadline.elapsed_ms / 1000)
    for stage, seconds in stopwatch.laps_s:
        door.metrics.stage_seconds[stage].observe(seconds)
    return response


async def _answer(
    request: Request, door: Door, deadline: Deadline, stopwatch: Stopwatch
) -> tuple[Response, str]:
    if door.in_flight > MAX_IN_FLIGHT:
        raise ProblemError("overloaded", f"{MAX_IN_FLIGHT} requests are being worked on already.")
    raw = await _read_body(request)
    stopwatch.lap("read")
    reply = await door.service.decide(raw, deadline, stopwatch)
    headers = {"Server-Timing": stopwatch.server_timing()}
    if reply.is_replay:
        headers["Idempotent-Replayed"] = "true"
    else:
        door.metrics.decisions.labels(reply.answer.decision, reply.answer.decision_source).inc()
    body = msgspec.json.encode(reply.answer)
    response = Response(body, media_type="application/json", headers=headers)
    return response, "replayed" if reply.is_replay else "decided"


async def _read_body(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ProblemError("unsupported_media_type", "Send application/json.")
    too_large = ProblemError("too_large", f"A transaction has at most {MAX_MESSAGE_BYTES:,} bytes.")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_MESSAGE_BYTES:
        raise too_large
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_MESSAGE_BYTES:
                raise too_large
    except ClientDisconnect:
        raise ProblemError("disconnected", "The connection closed within the request.") from None
    return body


@router.get("/healthz", summary="Is the process alive?", response_class=Response)
async def healthz(request: Request) -> Response:
    """Answer 200, or 503 where only a restart helps."""
    fatal = request.app.state.door.backends.log.fatal
    return _status(503 if fatal else 200, {"alive": fatal is None})


@router.get("/readyz", summary="Can it decide?", response_class=Response)
async def readyz(request: Request) -> Response:
    """Answer 200, or 503 with what is missing and why."""
    missing = await find_missing(request.app.state.door.backends)
    return _status(503 if missing else 200, {"ready": not missing, "missing": missing})


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Answer the metrics of this process."""
    door: Door = request.app.state.door
    door.metrics.in_flight.set(door.in_flight)
    return Response(generate_latest(door.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _status(status: int, body: dict[str, object]) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")
