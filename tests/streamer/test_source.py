"""What the source returns while partitions move in the middle of a poll."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from flagger.settings import Settings
from streamer.source import _STUCK_S, Assignment, TransactionSource


class Message:
    """As much of one as the source looks at."""

    def __init__(self, partition: int, offset: int) -> None:
        self._place = partition, offset

    def partition(self) -> int:
        return self._place[0]

    def offset(self) -> int:
        return self._place[1]

    def value(self) -> bytes:
        return b"{}"

    def timestamp(self) -> tuple[int, int]:
        return 1, 0

    def error(self) -> None:
        return None


class Rebalanced:
    """A consumer that serves a rebalance inside `consume`, as librdkafka does."""

    def __init__(self, _config: dict[str, Any]) -> None:
        self.rebalances = False

    def subscribe(self, _topics: list[str], **callbacks: Callable[..., None]) -> None:
        self.callbacks = callbacks

    def committed(self, partitions: list[TopicPartition], **_: Any) -> list[TopicPartition]:
        return [TopicPartition("t", p.partition, 7) for p in partitions]

    def assign(self, _partitions: list[TopicPartition]) -> None: ...

    def unassign(self) -> None: ...

    def poll(self, _wait_s: float) -> Message:
        return Message(2, 7)

    def consume(self, _count: int, _wait_s: float) -> list[Message]:
        if not self.rebalances:
            return [Message(2, 8)]
        self.callbacks["on_revoke"](self, [TopicPartition("t", 2)])
        self.callbacks["on_assign"](self, [TopicPartition("t", 0)])
        return [Message(0, 7)]


class Nobody:
    """Stands for those whom the source asks about other partitions."""

    def __init__(self, *_: Any) -> None: ...

    def restart(self, _plan: object) -> None: ...

    def partitions(self, _topic: str) -> int:
        return 4

    def end(self, _topic: str, _partition: int) -> int:
        return 100

    def close(self) -> None: ...


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> TransactionSource:
    monkeypatch.setattr("streamer.source.Consumer", Rebalanced)
    monkeypatch.setattr("streamer.source.LogEnds", Nobody)
    monkeypatch.setattr("streamer.source.GroupProgress", Nobody)
    return TransactionSource(
        Settings(kafka_bootstrap_servers="nowhere:1"),
        on_assign=lambda committed: {p: Assignment(o, o) for p, o in committed.items()},
        on_revoke=lambda: None,
        on_lost=lambda: None,
        on_removed=lambda _topic, _count: None,
    )


def test_a_broker_that_was_away_since_the_assignment_has_finished_no_partition(
    source: TransactionSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Partition 2 comes first; what the others have may be days older."""
    consumer: Any = source._consumer
    consumer.callbacks["on_assign"](consumer, [TopicPartition("t", p) for p in range(4)])
    away_s = time.monotonic() + 2 * _STUCK_S
    monkeypatch.setattr("streamer.source.time", SimpleNamespace(monotonic=lambda: away_s))
    assert source.poll(10, 0, 0) is not None
    assert source.unfinished() == {0, 1, 2, 3}


def test_a_message_taken_before_a_rebalance_is_left_to_the_new_owner(
    source: TransactionSource,
) -> None:
    polled = source.poll(10, 0, 0)
    assert polled is not None
    assert polled.end_offsets() == {2: 9}
    consumer: Any = source._consumer
    consumer.rebalances = True
    polled = source.poll(10, 0, 0)
    assert polled is not None
    assert polled.end_offsets() == {0: 8}


def test_closing_does_not_wait_for_a_client_library_that_hangs(
    source: TransactionSource, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """librdkafka#4884: a rebalance that comes up meanwhile is never answered."""
    end = threading.Event()
    consumer: Any = source._consumer
    consumer.close = lambda: end.wait(30)
    monkeypatch.setattr("flagger.leave_group.LEAVE_S", 0.05)
    source.close()
    assert "did not leave the consumer group" in caplog.text
    end.set()
