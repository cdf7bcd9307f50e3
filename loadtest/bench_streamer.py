"""What several benchmarks share: streamers with topics, group and state of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.server import free_ports
from flagger.errors import StackError
from flagger.settings import Settings
from loadtest.observe import metric_values, wait_for_decided
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.topic_reader import Records, TopicReader
from streamer.topics import ensure_topics

__all__ = [
    "BenchStreamer",
    "count_records",
    "iter_topic",
    "own_outputs",
    "own_topics",
    "stream_backlog",
]

_INPUTS = ("transactions_topic", "labels_topic")
_STALLED_S = 60.0
_POLL_S = 0.1


def own_topics(base: Settings, name: str) -> Settings:
    """Return settings whose topics all have this name in front; they are made if missing."""
    return _made(base, own_topic_names(name))


def own_outputs(base: Settings, name: str, *, database: int) -> Settings:
    """Return settings for a new group: outputs of its own, made if missing, and empty state.

    Args:
        base: With addresses; what it reads stays.
        name: Of the group, and in the names of the topics.
        database: Number of an empty Valkey database; without a setting it has 0 to 15.
    """
    url = f"{(base.valkey_url or '').rsplit('/', 1)[0]}/{database}"
    outputs = {k: topic for k, topic in own_topic_names(name).items() if k not in _INPUTS}
    return _made(base, {**outputs, "consumer_group": name, "valkey_url": url})


def _made(base: Settings, changes: dict[str, str]) -> Settings:
    settings = base.model_copy(update=changes)
    ensure_topics(settings)
    return settings


class BenchStreamer:
    """One `flagger stream` process; a context manager that kills it at the end.

    Args:
        settings: With addresses, topics and group.
        log: File that its output is appended to.

    Attributes:
        settings: As given.
        process: The process; it has been started, but need not be ready yet.
        metrics_url: Its metrics page.
    """

    def __init__(self, settings: Settings, log: Path) -> None:
        (port,) = free_ports(1)
        self.settings = settings
        self.metrics_url = f"http://127.0.0.1:{port}/metrics"
        self.process = FlaggerProcess(
            ["stream", "--metrics-port", str(port)], environment_of(settings), log
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()

    def metric(self, name: str) -> float:
        """Return a metric's value, summed up over its labels; `name` without our prefix."""
        return sum(metric_values(self.metrics_url, f"flagger_streamer_{name}", "").values())

    def wait_for_metric(self, name: str, least: float) -> None:
        """Wait until a metric has reached a value; raises StackError after a minute."""
        deadline_s = time.monotonic() + _STALLED_S
        while (value := self.metric(name)) < least:
            self.process.require_running()
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"The streamer's {name} stands at {value:,.0f}, not {least:,.0f}, after "
                    f"{_STALLED_S:.0f} s. Its log ends with:\n{self.process.tail()}"
                )
            time.sleep(_POLL_S)


def stream_backlog(settings: Settings, good: int, log: Path, *, bad: int = 0) -> float:
    """Let a new streamer work off a full topic; return decisions per second.

    The clock runs from the first decisions that are seen to the last. Where all come at once, it
    runs from when the streamer answers, and the figure is too low.

    Args:
        settings: Topics and group, as `own_outputs` made them.
        good: Transactions in the topic: each must get one decision.
        log: File for the streamer's output.
        bad: Messages in the topic that must become dead letters.

    Raises:
        StackError: The streamer failed, or the counts are others.
    """
    with BenchStreamer(settings, log) as streamer:
        wait_for_url(streamer.metrics_url, streamer.process)
        ready_s = time.monotonic()
        seen = wait_for_decided(streamer.metrics_url, streamer.process, good)
        streamer.wait_for_metric("dead_lettered_total", bad)
        streamer.process.stop()
    for topic, expected in (
        (settings.decisions_topic, good),
        (settings.dead_letter_topic, bad),
    ):
        if (written := count_records(settings, topic)) != expected:
            raise StackError(f"{topic} has {written:,} messages; {expected:,} were due.")
    (start_s, first), (end_s, last) = seen[0], seen[-1]
    if len(seen) == 1:
        start_s, first = ready_s, 0.0
    return (last - first) / (end_s - start_s)


def iter_topic(settings: Settings, topic: str) -> Iterator[Records]:
    """Yield everything that is in a topic now, part by part, as a read-committed reader gets it.

    Raises:
        StackError: The broker stopped to answer.
    """
    reader = TopicReader(settings, topic)
    last_s = time.monotonic()
    try:
        while not reader.at_end:
            part = reader.read(0.1)
            if len(part):
                yield part
                last_s = time.monotonic()
            elif time.monotonic() - last_s > _STALLED_S:
                raise StackError(f"Kafka sent nothing of {topic} for {_STALLED_S:.0f} s.")
    finally:
        reader.close()


def count_records(settings: Settings, topic: str) -> int:
    """Return how many messages a reader of committed messages finds in a topic."""
    return sum(map(len, iter_topic(settings, topic)))
