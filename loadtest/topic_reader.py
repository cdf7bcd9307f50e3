"""Reads a whole topic, or follows it, as a read-committed reader sees it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, TopicPartition

from flagger.errors import StackError
from flagger.kafka import client_config, is_fatal
from flagger.settings import Settings
from streamer.log_ends import LogEnds

__all__ = ["Records", "TopicReader", "read_topic", "wait_for_open_transactions"]

_MAX_MESSAGES = 10_000
_STALLED_S = 60.0
_OPEN_S = 40.0
"""A streamer that was killed leaves a transaction open. The broker looks every 10 s for those
older than 10 s, and ends them. Until then nobody sees what others have committed behind it."""


@dataclass(frozen=True, slots=True)
class Records:
    """Messages of a topic, each partition in log order.

    Attributes:
        values: Message values.
        partition: int16 [n].
        offset: int64 [n].
        timestamp_ms: Message timestamps, int64 [n].
        read_ms: When they reached this reader, epoch milliseconds, float64 [n].
    """

    values: list[bytes]
    partition: npt.NDArray[np.int16]
    offset: npt.NDArray[np.int64]
    timestamp_ms: npt.NDArray[np.int64]
    read_ms: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    @classmethod
    def concat(cls, parts: list[Records]) -> Records:
        """Return all parts as one; an empty list gives no records."""
        return cls(
            [value for part in parts for value in part.values],
            np.concatenate([np.empty(0, np.int16), *(p.partition for p in parts)]),
            np.concatenate([np.empty(0, np.int64), *(p.offset for p in parts)]),
            np.concatenate([np.empty(0, np.int64), *(p.timestamp_ms for p in parts)]),
            np.concatenate([np.empty(0, np.float64), *(p.read_ms for p in parts)]),
        )


class TopicReader:
    """Reads all partitions of a topic; belongs to no group.

    Args:
        settings: Where Kafka is.
        topic: What to read.
        from_end: Only what is written from now on; else from the beginning.
    """

    def __init__(self, settings: Settings, topic: str, *, from_end: bool = False) -> None:
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": "flagger-reader",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.queue.backoff.ms": 10,
                "fetch.wait.max.ms": 20,
            }
        )
        found = self._consumer.list_topics(topic, timeout=30).topics[topic]
        if found.error is not None:
            self._consumer.close()
            raise StackError(f"Topic {topic} cannot be read: {found.error}.")
        self._partitions = list(found.partitions)
        self._at_end: set[int] = set()
        start = OFFSET_END if from_end else OFFSET_BEGINNING
        self._consumer.assign([TopicPartition(topic, p, start) for p in found.partitions])

    @property
    def at_end(self) -> bool:
        """True if every partition was read to its end when it was last heard of."""
        return len(self._at_end) == len(self._partitions)

    def read(self, wait_s: float) -> Records:
        """Return what arrives within `wait_s`; less as soon as there is any."""
        first = self._consumer.poll(wait_s)
        if first is None:
            return Records.concat([])
        messages = []
        for message in (first, *self._consumer.consume(_MAX_MESSAGES, 0)):
            error = message.error()
            if error is None:
                self._at_end.discard(message.partition())
                messages.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
                self._at_end.add(message.partition())
            elif is_fatal(error):
                raise StackError(f"Kafka refuses this reader: {error}.")
        n = len(messages)
        return Records(
            [m.value() or b"" for m in messages],
            np.fromiter((m.partition() for m in messages), dtype=np.int16, count=n),
            np.fromiter((m.offset() for m in messages), dtype=np.int64, count=n),
            np.fromiter((m.timestamp()[1] for m in messages), dtype=np.int64, count=n),
            np.full(n, time.time() * 1000),
        )

    def close(self) -> None:
        """Close the consumer."""
        self._consumer.close()


def read_topic(settings: Settings, topic: str) -> Records:
    """Return everything that is in a topic now.

    Raises:
        StackError: The broker stopped to answer.
    """
    reader = TopicReader(settings, topic)
    parts: list[Records] = []
    last_s = time.monotonic()
    try:
        while not reader.at_end:
            part = reader.read(0.1)
            if len(part):
                parts.append(part)
                last_s = time.monotonic()
            elif time.monotonic() - last_s > _STALLED_S:
                raise StackError(f"Kafka sent nothing of {topic} for {_STALLED_S:.0f} s.")
    finally:
        reader.close()
    return Records.concat(parts)


def wait_for_open_transactions(settings: Settings, topic: str) -> None:
    """Wait until a read-committed reader sees everything that is in a topic now.

    Raises:
        StackError: A transaction hangs.
    """
    ends = LogEnds(settings)
    reader = {"group.id": "flagger-reader", "isolation.level": "read_committed"}
    visible = Consumer(client_config(settings) | reader)
    deadline_s = time.monotonic() + _OPEN_S
    try:
        for p in range(ends.partitions(topic)):
            end = ends.end(topic, p)
            while visible.get_watermark_offsets(TopicPartition(topic, p), timeout=30)[1] < end:
                if time.monotonic() > deadline_s:
                    raise StackError(f"Partition {p} of {topic} has a transaction that hangs.")
                time.sleep(0.1)
    finally:
        ends.close()
        visible.close()
