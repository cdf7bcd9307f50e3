"""What a run looks like from outside: metrics pages, decisions as readers get them, requests."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from flagger.errors import StackError
from flagger.settings import Settings
from loadtest.processes import FlaggerProcess
from loadtest.topic_reader import Records, TopicReader

__all__ = [
    "DecisionFollower",
    "GatewayAnswer",
    "ask_gateway",
    "evenly_over",
    "metric_values",
    "wait_for_decided",
]

_POLL_S = 0.1
_STALLED_S = 60.0
_REQUEST_TIMEOUT_S = 5.0
MAX_ATTEMPTS = 5
_RETRY_S = 0.2


def metric_values(url: str, name: str, label: str) -> dict[str, float]:
    """Return the samples of a name on a metrics page, summed up by one of their labels."""
    with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310 - ours
        page = response.read().decode()
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                key = sample.labels.get(label, "")
                values[key] = values.get(key, 0.0) + sample.value
    return values


def wait_for_decided(url: str, process: FlaggerProcess, target: int) -> list[tuple[float, float]]:
    """Wait until a streamer has written `target` decisions.

    Returns (seconds, decisions) over time, from the first decision on.

    Raises:
        StackError: The streamer ended, or wrote nothing more for a minute.
    """
    seen: list[tuple[float, float]] = []
    changed_s = time.monotonic()
    while True:
        process.require_running()
        now_s = time.monotonic()
        decided = sum(metric_values(url, "flagger_streamer_decided_total", "decision").values())
        if decided > (seen[-1][1] if seen else 0):
            seen.append((now_s, decided))
            changed_s = now_s
        if decided >= target:
            return seen
        if now_s - changed_s > _STALLED_S:
            raise StackError(
                f"The streamer stands at {decided:,.0f} of {target:,} decisions for "
                f"{_STALLED_S:.0f} s. Its log ends with:\n{process.tail()}"
            )
        time.sleep(_POLL_S)


class DecisionFollower:
    """Reads the decisions topic in a thread, from now until the context ends."""

    def __init__(self, settings: Settings) -> None:
        self._reader = TopicReader(settings, settings.decisions_topic, from_end=True)
        self._parts: list[Records] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower")

    def __enter__(self) -> Self:
        while not self._reader.at_end:  # only now it is sure to stand at the end
            self._reader.read(0.1)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._reader.close()

    @property
    def records(self) -> Records:
        """What was read so far."""
        return Records.concat(list(self._parts))

    def _follow(self) -> None:
        while not self._stop.is_set():
            part = self._reader.read(0.05)
            if len(part):
                self._parts.append(part)


@dataclass(frozen=True, slots=True)
class GatewayAnswer:
    """One answer of the gateway.

    Attributes:
        status: HTTP status.
        decision: What it decided, or the title of its problem.
        latency_ms: As this client measured it, the last attempt alone.
        attempts: Requests that were needed; 503 asks for a repeat, which is safe.
        score: The model's; None if it was not asked.
    """

    status: int
    decision: str
    latency_ms: float
    attempts: int = 1
    score: float | None = None


def evenly_over(duration_s: float, turns: int) -> Callable[[int], None]:
    """Return a wait for each turn that spreads all of them evenly over a time, from now on."""
    start_s = time.monotonic()
    return lambda i: time.sleep(max(start_s + duration_s * i / turns - time.monotonic(), 0))


def ask_gateway(
    port: int, bodies: Sequence[bytes], key: str, *, wait_for_turn: Callable[[int], object]
) -> list[GatewayAnswer]:
    """Send requests one after the other over one connection, each when its turn has come."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    answers = []
    try:
        for i, body in enumerate(bodies):
            wait_for_turn(i)
            attempts = 0
            while True:
                attempts += 1
                sent_s = time.perf_counter()
                connection.request("POST", "/v1/score", body, headers)
                response = connection.getresponse()
                answer = msgspec.json.decode(response.read())
                latency_ms = (time.perf_counter() - sent_s) * 1000
                if response.status != 503 or attempts == MAX_ATTEMPTS:
                    break
                time.sleep(_RETRY_S)
            said = str(answer.get("decision", answer.get("title", "")))
            score = answer.get("score")
            answers.append(GatewayAnswer(response.status, said, latency_ms, attempts, score))
    finally:
        connection.close()
    return answers
