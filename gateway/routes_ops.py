"""For the orchestrator: health, readiness, metrics; open to everybody, without customer data."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from flagger.brakes import CAPS
from gateway.door import Door, json
from gateway.problems import RETRY_AFTER_S

__all__ = ["healthz", "metrics", "readyz"]


async def healthz(request: Request) -> Response:
    """Answer 200, or 503 where only a restart helps."""
    fatal = request.app.state.door.backends.log.fatal
    return _probe({"alive": fatal is None}, is_good=fatal is None)


async def readyz(request: Request) -> Response:
    """Answer 200, or 503 with what is missing and why."""
    door: Door = request.app.state.door
    missing = await door.readiness.missing()
    if door.draining:
        missing["gateway"] = "It is shutting down."
    return _probe({"ready": not missing, "missing": missing}, is_good=not missing)


def _probe(body: object, *, is_good: bool) -> Response:
    if is_good:
        return json(body)
    return json(body, 503, {"Retry-After": str(RETRY_AFTER_S)})


async def metrics(request: Request) -> Response:
    """Answer the metrics of this process."""
    door: Door = request.app.state.door
    door.metrics.in_flight.set(door.in_flight)
    for name, breaker in door.service.breakers.items():
        door.metrics.breaker_open.labels(name).set(int(breaker.is_open))
    for cap in CAPS:
        door.metrics.brake_engaged.labels(cap).set(int(door.service.brakes.is_engaged(cap)))
    door.metrics.rulebook_refused.set(bool(door.service.rulebook.refusal))
    return Response(generate_latest(door.metrics.registry), media_type=CONTENT_TYPE_LATEST)
