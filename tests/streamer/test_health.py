"""What probes and people are told about a streamer."""

from __future__ import annotations

import json
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter

from deploy.local.server import free_ports
from streamer.health import STUCK_S, Health, serve_health


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ask(port: int, path: str) -> tuple[int, dict[str, object]]:
    try:
        with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_loop_that_stands_is_stuck_unless_it_knows_why(clock: Clock) -> None:
    health = Health(clock)
    seen = []
    health.goes_on("partitions")
    clock.now_s = STUCK_S + 1
    seen.append(health.stuck)
    health.waits("triton", "away")
    seen.append(health.stuck)
    health.goes_on("triton")
    health.came_round()
    seen.append(health.stuck)
    assert seen == [True, False, False]


def test_probes_and_metrics(clock: Clock) -> None:
    (port,) = free_ports(1)
    registry = CollectorRegistry()
    Counter("seen", "Seen", registry=registry).inc(3)
    health = Health(clock)
    serve_health(health, registry, "127.0.0.1", port)
    status, body = ask(port, "/readyz")
    assert status == 503
    assert "no partition" in str(body["waits_for"])
    assert ask(port, "/healthz")[0] == 200
    health.goes_on("partitions")
    assert ask(port, "/readyz") == (200, {"status": "ok", "waits_for": {}})
    clock.now_s = STUCK_S + 1
    assert ask(port, "/healthz")[0] == 503
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"seen_total 3.0" in answer.read()
    with pytest.raises(HTTPError):
        urlopen(f"http://127.0.0.1:{port}/else")
