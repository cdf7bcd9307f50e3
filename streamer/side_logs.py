"""The two logs beside the transactions: labels, and the terminals' activity of all streamers.

Both have one partition, so an offset says exactly which entries a terminal's record includes.
Entries are applied strictly in log order and not before the stream's own clock reaches them: when
history is read again, the logs already hold what lies in its future, and a terminal's ring that
ran ahead would have lost the oldest days that slower partitions still need. How far the clock had
come is stored beside the offsets: whoever takes the terminals over goes on from there and does not
wait for a transaction of its own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from flagger.errors import BadMessageError, StackError
from flagger.features import ActivityBatch, FeatureEngine, LabelBatch
from flagger.features.hashing import key_of
from flagger.kafka import client_config
from flagger.settings import Settings
from flagger.state.records import TERMINAL_BUCKET_MS
from flagger.wire.messages import Label, parse_label
from streamer.log_ends import LogEnds, require_delivery

__all__ = ["ACTIVITY_ENTRY", "CLOCK_MARK", "SideLogs", "decode_activity", "encode_activity"]

ACTIVITY_ENTRY = np.dtype([("terminal_key", "<u8"), ("bucket", "<i4"), ("count", "<u4")])
"""Wire form of the activity log: each message is an array of these."""

CLOCK_MARK = "clock_ms"
"""Among the marks of the side logs: the event time that entries were due by, epoch milliseconds."""

MAX_WAITING_ENTRIES = 20_000
"""Entries of the future kept in memory; at this many a log is not read on until some are due."""
MAX_KEPT_REFUSED = 1_000
"""Messages that are no entries, kept by those who do not write the terminals: whoever does writes
the dead letters within about a second, unless it ends before."""
_CATCH_UP_S = 30.0
_FETCH_WAIT_MS = 20
"""How long the broker may sit on an empty fetch; `catch_up` waits for its answer."""


def encode_activity(keys: npt.NDArray[np.uint64], times_ms: npt.NDArray[np.int64]) -> bytes:
    """Return one entry of the activity log for the given transactions, at least one."""
    buckets = times_ms // TERMINAL_BUCKET_MS
    parts = []
    for bucket in np.unique(buckets):
        distinct, counts = np.unique(keys[buckets == bucket], return_counts=True)
        part = np.empty(len(distinct), dtype=ACTIVITY_ENTRY)
        part["terminal_key"] = distinct
        part["bucket"] = bucket
        part["count"] = counts
        parts.append(part)
    return np.concatenate(parts).tobytes()


def decode_activity(value: bytes) -> ActivityBatch:
    """Read one entry of the activity log; raises BadMessageError where it is none."""
    if not value or len(value) % ACTIVITY_ENTRY.itemsize:
        raise BadMessageError(
            f"{len(value)} bytes are no entry of the activity log: one or more times "
            f"{ACTIVITY_ENTRY.itemsize}"
        )
    entry = np.frombuffer(value, dtype=ACTIVITY_ENTRY)
    return ActivityBatch(
        np.ascontiguousarray(entry["terminal_key"]),
        np.ascontiguousarray(entry["bucket"]),
        np.ascontiguousarray(entry["count"]),
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    due_ms: int
    content: Label | ActivityBatch


def _label_batch(label: Label) -> LabelBatch:
    return LabelBatch(
        np.array([key_of(label.transaction_id)], dtype=np.uint64),
        np.array([key_of(label.terminal_id)], dtype=np.uint64),
        np.array([label.event_time_ms], dtype=np.int64),
        np.array([label.is_fraud], dtype=np.uint8),
    )


class SideLogs:
    """Reads both logs and applies what is due.

    Args:
        settings: Broker and topic names.
        stored: The marks of the stored terminals: topic -> offset from which on entries are not
            in them, and the clock.
        on_removed: See `LogEnds`.

    Attributes:
        refused: Messages that are no entries, with why, until somebody clears it.

    Raises:
        ConfigurationError: A log ends before what is stored of it.
    """

    def __init__(
        self,
        settings: Settings,
        stored: dict[str, int],
        *,
        clock_ms: Callable[[], int],
        on_removed: Callable[[str, int], None],
    ) -> None:
        self._labels = settings.labels_topic
        self._topics = (settings.activity_topic, settings.labels_topic)
        self._clock_ms = clock_ms
        self.refused: list[tuple[Message, BadMessageError]] = []
        self._waiting: dict[str, deque[_Entry]] = {t: deque() for t in self._topics}
        self._ends = LogEnds(settings, on_removed)
        self._read: dict[str, int] = {
            t: self._ends.first_left(t, 0, stored.get(t, 0)) for t in self._topics
        }
        self._due_until_ms = 0
        self.go_on_from(stored)
        self._paused: set[str] = set()
        self._consumer = Consumer(
            client_config(settings)
            | {
                # No group: every streamer reads all of both logs and keeps its own place.
                "group.id": f"{settings.consumer_group}-side-logs",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",  # see `log_ends`
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
            }
        )
        self._consumer.assign(
            [TopicPartition(t, 0, self._read[t] or OFFSET_BEGINNING) for t in self._topics]
        )

    @property
    def marks(self) -> dict[str, int]:
        """Topic -> offset of the first entry that is not applied yet, and the clock."""
        applied = {
            topic: self._waiting[topic][0].offset if self._waiting[topic] else self._read[topic]
            for topic in self._topics
        }
        return applied | {CLOCK_MARK: self._due_until_ms}

    @property
    def waiting_entries(self) -> int:
        """Entries read that are not due yet, at most `MAX_WAITING_ENTRIES` and one read a log."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def go_on_from(self, stored: dict[str, int]) -> None:
        """Take over from whoever stored these marks: its clock, if it is ahead of ours.

        What it has passed it has refused itself.
        """
        self.refused = [r for r in self.refused if r[0].offset() >= stored.get(r[0].topic(), 0)]
        self._due_until_ms = max(self._due_until_ms, stored.get(CLOCK_MARK, 0))

    def read(self, wait_s: float = 0.0) -> None:
        """Take in what has arrived, up to the limit of waiting entries."""
        full = {t for t in self._topics if len(self._waiting[t]) >= MAX_WAITING_ENTRIES}
        if full != self._paused:
            if full - self._paused:
                self._consumer.pause([TopicPartition(t, 0) for t in full - self._paused])
            if self._paused - full:
                self._consumer.resume([TopicPartition(t, 0) for t in self._paused - full])
            self._paused = full
        for message in self._consumer.consume(1_000, wait_s):
            self._take(message)

    def apply_due(self, engine: FeatureEngine, stream_clock_ms: int) -> None:
        """Apply, in log order, the entries that are not in the stream's future."""
        self._due_until_ms = max(self._due_until_ms, stream_clock_ms)
        for waiting in self._waiting.values():
            while waiting and waiting[0].due_ms <= self._due_until_ms:
                entry = waiting.popleft()
                if isinstance(entry.content, ActivityBatch):
                    engine.apply_activity(entry.content, entry.offset)
                else:
                    offsets = np.array([entry.offset], dtype=np.int64)
                    engine.apply_labels(_label_batch(entry.content), offsets)

    def forget_refused(self) -> None:
        """Keep the newest refused messages only: somebody else writes the dead letters."""
        del self.refused[:-MAX_KEPT_REFUSED]

    def catch_up(self, engine: FeatureEngine, stream_clock_ms: int) -> None:
        """Read and apply everything that is in the logs now, except the stream's future.

        Call it without an open Kafka transaction: what others write becomes readable when they
        commit, and they may be waiting for us.

        Raises:
            StackError: The broker did not answer in time.
        """
        ends = {topic: self._ends.end(topic, 0) for topic in self._topics}
        deadline_s = time.monotonic() + _CATCH_UP_S
        while True:
            self.apply_due(engine, stream_clock_ms)
            behind = [t for t in self._topics if self._read[t] < ends[t] and not self._waiting[t]]
            if not behind:
                return
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"Kafka did not deliver {', '.join(behind)} up to its end within "
                    f"{_CATCH_UP_S:.0f} s; is another producer's transaction hanging?"
                )
            self.read(0.005)

    def close(self) -> None:
        """Close the connections."""
        self._ends.close()
        self._consumer.close()

    def _take(self, message: Message) -> None:
        error = message.error()
        topic = message.topic()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
                self._read[topic] = max(self._read[topic], message.offset())
            else:
                require_delivery(message)
            return
        offset = message.offset()
        self._read[topic] = offset + 1
        value = message.value() or b""
        try:
            if topic == self._labels:
                label = parse_label(value, self._clock_ms())
                entry = _Entry(offset, label.event_time_ms, label)
            else:
                activity = decode_activity(value)
                newest_ms = int(activity.bucket.max()) * TERMINAL_BUCKET_MS
                entry = _Entry(offset, newest_ms, activity)
        except BadMessageError as bad:
            self.refused.append((message, bad))
        else:
            self._waiting[topic].append(entry)
