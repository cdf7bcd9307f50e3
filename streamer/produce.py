"""Sends a file's transactions to Kafka, and the labels of its frauds to the labels topic.

A replay gives every streamer the same history at any speed, because two things are bounded in
event time. Labels go ahead of the transactions of their chunk; streamers apply them when the
stream's clock comes near. And a chunk, half a day at most, is sent only when the one before the
last is in the log, so that no partition runs ahead of the others by more than a day.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import KafkaError, Message, Producer

from flagger.errors import StackError
from flagger.features import CATEGORY_FIELDS
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.state.records import TERMINAL_BUCKET_MS
from streamer.payload_writer import PayloadWriter

__all__ = ["Pace", "PaceClock", "ReplayProducer", "chunks_of", "encode_transactions"]

CHUNK_ROWS = 8_192
"""Most transactions of a chunk."""
CHUNK_MS = TERMINAL_BUCKET_MS
"""Longest event time of a chunk."""
_CHUNK_S = 0.1
"""With a rate, the longest chunk: encoded in one piece, which costs a row less than ten pieces."""
_SLICE_S = 0.005
"""With a rate, messages go out in slices of this length."""
_FLUSH_S = 60.0
_MAX_QUEUED_MESSAGES = 200_000
_NEEDS_ESCAPE = r'["\\\x00-\x1f]'
_ID_FIELDS = ("transaction_id", "customer_id", "terminal_id")


def _quoted(column: pa.Array) -> pa.Array:
    """Return JSON strings of a text column, with quotes; null stays null."""
    if pc.any(pc.match_substring_regex(column, _NEEDS_ESCAPE)).as_py():
        texts = [None if v is None else msgspec.json.encode(v).decode() for v in column.to_pylist()]
        return pa.array(texts, pa.string())
    return pc.binary_join_element_wise('"', column, '"', "")


def encode_transactions(rows: pa.RecordBatch) -> list[bytes]:
    """Return the JSON messages of rows in the readers' schema; absent categories are left out."""
    pieces: list[Any] = []
    lead = "{"
    for name in _ID_FIELDS:
        pieces += [f'{lead}"{name}":', _quoted(rows[name])]
        lead = ","
    pieces += [',"event_time":', pc.cast(pc.cast(rows["event_time"], pa.int64()), pa.string())]
    pieces += [',"amount":', pc.cast(rows["amount"], pa.string())]
    for name in CATEGORY_FIELDS:
        if rows[name].null_count == len(rows):
            continue
        member = pc.binary_join_element_wise(f',"{name}":', _quoted(rows[name]), "")
        pieces.append(pc.fill_null(member, ""))
    joined = pc.binary_join_element_wise(*pieces, "}", "")
    return [value.encode() for value in joined.to_pylist()]


def _encode_labels(frauds: pa.RecordBatch) -> list[bytes]:
    now_ms = time.time_ns() // 1_000_000
    times_ms = pc.cast(frauds["event_time"], pa.int64()).to_pylist()
    ids = zip(frauds["transaction_id"].to_pylist(), frauds["terminal_id"].to_pylist(), strict=True)
    return [
        msgspec.json.encode(
            {
                "transaction_id": transaction_id,
                "is_fraud": True,
                "source": "replay",
                "labelled_at": now_ms,
                "terminal_id": terminal_id,
                "event_time": time_ms,
            }
        )
        for (transaction_id, terminal_id), time_ms in zip(ids, times_ms, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast to send: at most `per_s` messages a second, and not before their time.

    Attributes:
        per_s: Messages per second; None: as fast as the broker takes them.
        speed_up: Event time passes so many times faster than the clock; None: no such limit.
    """

    per_s: float | None = None
    speed_up: float | None = None


class ReplayProducer:
    """Produces transactions and labels.

    Attributes:
        sent: Transactions acknowledged by the broker so far.
        labels: Labels acknowledged.
    """

    def __init__(self, settings: Settings, *, with_labels: bool = True) -> None:
        self._settings = settings
        self._with_labels = with_labels
        self._payloads = PayloadWriter(settings)
        config = producer_config(settings) | {
            "queue.buffering.max.messages": _MAX_QUEUED_MESSAGES,
            "linger.ms": 2,
        }
        self._transactions = Producer(config | {"on_delivery": self._delivered})
        self._label_producer = Producer(config | {"on_delivery": self._label_delivered})
        self._failure: KafkaError | None = None
        self.sent = 0
        self.labels = 0

    def run(
        self,
        chunks: Iterable[pa.RecordBatch],
        pace: Pace | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Send all chunks, in their order, and wait until the broker has them.

        Args:
            chunks: Rows in the readers' schema, in event-time order.
            pace: How fast.
            on_progress: Called with the number of transactions handed over since the last call.

        Raises:
            StackError: The broker refused or did not take a message.
        """
        pace = pace or Pace()
        clock = PaceClock(pace)
        handed = before_last = 0
        for rows in chunks_of(chunks, pace):
            self._wait_for(before_last)
            before_last = handed
            clock.wait_until_due(handed, rows["event_time"][0])
            self._send_labels(rows)
            values = self._payloads.write(encode_transactions(rows))
            messages = zip(values, rows["customer_id"].to_pylist(), strict=True)
            for start in range(0, len(rows), clock.slice_rows):
                clock.wait_until_due(handed, rows["event_time"][start])
                n = self._send(islice(messages, clock.slice_rows))
                handed += n
                on_progress(n)
        left = self._transactions.flush(_FLUSH_S) + self._label_producer.flush(_FLUSH_S)
        if left or self._failure is not None:
            raise StackError(
                f"Kafka did not take all messages: {left:,} are unacknowledged"
                f"{f', first error: {self._failure}' if self._failure else ''}. {self.sent:,} "
                f"arrived; a repeated transaction is recognised, so send the file again."
            )

    def _wait_for(self, count: int) -> None:
        """Wait until so many transactions are acknowledged; a failure is reported at the end."""
        deadline_s = time.monotonic() + _FLUSH_S
        while self.sent < count and self._failure is None and time.monotonic() < deadline_s:
            self._transactions.poll(0.01)

    def close(self) -> None:
        """Close the connections; what is not acknowledged by now is given up."""
        self._transactions.close()
        self._label_producer.close()
        self._payloads.close()

    def _send(self, messages: Iterable[tuple[bytes, str]]) -> int:
        topic = self._settings.transactions_topic
        produce = self._transactions.produce
        n = 0
        for n, (value, key) in enumerate(messages, start=1):  # noqa: B007 - counts
            while True:
                try:
                    produce(topic, value, key)
                except BufferError:
                    self._transactions.poll(0.05)
                else:
                    break
        self._transactions.poll(0)
        return n

    def _send_labels(self, rows: pa.RecordBatch) -> None:
        if not self._with_labels:
            return
        frauds = rows.filter(pc.equal(rows["is_fraud"], pa.scalar(True)))  # null: not known
        if not len(frauds):
            return
        for value in _encode_labels(frauds):
            self._label_producer.produce(self._settings.labels_topic, value, partition=0)
        self._label_producer.flush(_FLUSH_S)

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.sent += 1
        else:
            self._failure = self._failure or error

    def _label_delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self.labels += 1
        else:
            self._failure = self._failure or error


def chunks_of(chunks: Iterable[pa.RecordBatch], pace: Pace) -> Iterator[pa.RecordBatch]:
    """Cut rows into chunks of at most `CHUNK_ROWS`, `CHUNK_MS` and, with a rate, `_CHUNK_S`."""
    size = CHUNK_ROWS
    if pace.per_s is not None:
        size = max(1, min(CHUNK_ROWS, int(pace.per_s * _CHUNK_S)))
    elif pace.speed_up is not None:
        size = 1  # its label must not be hours ahead of it
    for chunk in chunks:
        times_ms = pc.cast(chunk["event_time"], pa.int64()).to_numpy()
        start = 0
        while start < len(chunk):
            late = times_ms[start : start + size] >= times_ms[start] + CHUNK_MS
            length = int(np.argmax(late)) if late.any() else size
            yield chunk.slice(start, length)
            start += length


class PaceClock:
    """Starts with the first row that is waited for."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._start_s = time.monotonic()
        self._first_ms: int | None = None
        self.slice_rows = CHUNK_ROWS
        if pace.per_s is not None:
            self.slice_rows = max(1, min(CHUNK_ROWS, int(pace.per_s * _SLICE_S)))
        elif pace.speed_up is not None:
            self.slice_rows = 1

    def wait_until_due(self, sent_before: int, event_time: pa.Scalar) -> None:
        """Wait for the moment of a row; so many others are sent before it."""
        event_time_ms = event_time.value
        if self._first_ms is None:
            self._first_ms = event_time_ms
        if self._pace.per_s is not None:
            _sleep_until(self._start_s + sent_before / self._pace.per_s)
        if self._pace.speed_up is not None:
            ahead_s = (event_time_ms - self._first_ms) / 1000
            _sleep_until(self._start_s + ahead_s / self._pace.speed_up)


def _sleep_until(moment_s: float) -> None:
    rest_s = moment_s - time.monotonic()
    if rest_s > 0:
        time.sleep(rest_s)
