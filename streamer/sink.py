"""Writes decisions, alerts, dead letters, activity and the consumed offsets: one transaction.

Two transactional producers take turns: while the commit of one is under way, the next outputs go to
the broker through the other. With a single one every commit would wait for the broker to close the
last transaction first, and then for the outputs to be sent. Commits are made one after the other;
when one fails, no later one is tried.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaException, Producer, TopicPartition

from flagger.errors import StackError
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.wire.messages import SCHEMA_VERSION
from streamer.committer import Committer
from streamer.side_logs import encode_activity

__all__ = ["MAX_DEAD_LETTER_BYTES", "DecisionSink"]

_START_TIMEOUT_S = 30.0
_LINGER_MS = 2
_RETRY_BACKOFF_MS = 2
"""The broker puts a transaction off for a moment while the markers of the last one are written.
librdkafka's own 100 ms would then be the duration of every commit."""
_MAX_QUEUED_MESSAGES = 500_000
_TRANSACTION_TIMEOUT_MS = 10_000
"""A streamer that hangs with an open transaction keeps readers and its heir waiting for so long."""
_COMMIT_TIMEOUT_S = _TRANSACTION_TIMEOUT_MS / 1000
"""By then the broker has aborted the transaction: there is nothing left to wait for."""
_HUNG_AFTER_S = _COMMIT_TIMEOUT_S + 2
"""Longer than the client library's own timeout, for when that does not work."""

MAX_DEAD_LETTER_BYTES = 1_040_000
"""Most bytes of a message that are kept as a dead letter: with its headers it fits into a topic
with Kafka's usual limit of 1 MiB, which an operator may have made. More is far above what is read,
so nothing that could ever be decided is lost."""
_TRANSACTIONS = 2
"""One commits while the other is written."""


def _put(producer: Producer, topic: str, value: bytes, headers: dict[str, bytes]) -> None:
    """Add a message to partition 0; waits while the client's queue is full."""
    while True:
        try:
            producer.produce(topic, value, partition=0, headers=headers)
        except BufferError:
            producer.poll(0.01)
        else:
            return


def _is_cut(value: bytes) -> bool:
    return len(value) > MAX_DEAD_LETTER_BYTES


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turn the client library's errors into ours, with the cause kept."""
    try:
        yield
    except KafkaException as error:
        raise StackError(
            f"Kafka did not {what} a transaction: {error}. Nothing of it is visible; start this "
            f"streamer again, it goes on from the last committed offset."
        ) from error


class _Transaction:
    """One transactional producer and what is known of its open transaction.

    Attributes:
        producer: The client; after `init_transactions` it fences its predecessors.
        opened_s: When the open transaction began, monotonic seconds.
        activity: Transactions to count at terminals: their keys and times.
    """

    def __init__(self, settings: Settings, number: int) -> None:
        name = f"{settings.consumer_group}-{settings.instance}"
        self.producer = Producer(
            producer_config(settings)
            | {
                # The first one has the plain name.
                "transactional.id": f"{name}-{number}" if number else name,
                "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS,
                "linger.ms": _LINGER_MS,
                "retry.backoff.ms": _RETRY_BACKOFF_MS,
                "retry.backoff.max.ms": 2 * _RETRY_BACKOFF_MS,
                "queue.buffering.max.messages": _MAX_QUEUED_MESSAGES,
                # Nobody listens to a report of each success; a failure fails the commit.
                "delivery.report.only.error": True,
            }
        )
        self.opened_s = 0.0
        self.activity: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]] = []
        with _mapped("start transactions"):
            self.producer.init_transactions(_START_TIMEOUT_S)

    def begin(self) -> None:
        with _mapped("begin"):
            self.producer.begin_transaction()
        self.opened_s = time.monotonic()

    def take_activity(self) -> bytes | None:
        """Return the entry of the activity log and begin a new one; None: nothing to count."""
        if not self.activity:
            return None
        keys = np.concatenate([keys for keys, _ in self.activity])
        times_ms = np.concatenate([times for _, times in self.activity])
        self.activity.clear()
        return encode_activity(keys, times_ms)

    def finish(self, offsets: list[TopicPartition], group: Any) -> None:
        """Commit with the consumed offsets; blocks."""
        deadline_s = time.monotonic() + _COMMIT_TIMEOUT_S
        with _mapped("commit"):
            self.producer.send_offsets_to_transaction(offsets, group, _COMMIT_TIMEOUT_S)
            self.producer.commit_transaction(max(deadline_s - time.monotonic(), 0.001))

    def abort(self) -> None:
        """Give up what is open: readers never see it."""
        self.activity.clear()
        with _mapped("abort"):
            self.producer.abort_transaction(_COMMIT_TIMEOUT_S)


class DecisionSink:
    """The outputs' way into Kafka. A transaction is open from the first output to `commit`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle = deque(_Transaction(settings, number) for number in range(_TRANSACTIONS))
        self._open: _Transaction | None = None
        self._committer = Committer(_HUNG_AFTER_S)
        self._under_way: _Transaction | None = None

    @property
    def committing(self) -> bool:
        """True while a commit is under way; outputs can be written meanwhile."""
        return self._committer.busy

    @property
    def has_output(self) -> bool:
        """True if a transaction is open."""
        return self._open is not None

    @property
    def age_s(self) -> float:
        """Seconds since the open transaction began."""
        return 0.0 if self._open is None else time.monotonic() - self._open.opened_s

    def write(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes],
        partitions: Sequence[int],
        timestamps_ms: Sequence[int],
        headers: Iterable[dict[str, str] | None] | None = None,
    ) -> None:
        """Add messages, each to the given partition with the given timestamp, and headers."""
        producer = self._opened().producer
        produce = producer.produce
        each = repeat(None, len(values)) if headers is None else headers
        for value, key, partition, timestamp_ms, extra in zip(
            values, keys, partitions, timestamps_ms, each, strict=True
        ):
            while True:
                try:
                    # By position: with names a call takes half as long again.
                    produce(topic, value, key, partition, None, None, timestamp_ms, extra)
                except BufferError:
                    producer.poll(0.01)
                else:
                    break
        producer.poll(0)

    def dead_letter(self, value: bytes, *, topic: str, place: tuple[int, int], error: Any) -> None:
        """Add one message that can never be decided, with where it came from and why.

        All go to partition 0, whatever the topic has: there `flagger dead-letters` reads.

        Args:
            value: The original bytes; of very large ones the first `MAX_DEAD_LETTER_BYTES`.
            topic: Where it came from.
            place: Partition and offset there.
            error: A FlaggerError.
        """
        _put(
            self._opened().producer,
            self._settings.dead_letter_topic,
            value[:MAX_DEAD_LETTER_BYTES],
            headers={
                **({"bytes": str(len(value)).encode()} if _is_cut(value) else {}),
                "reason": str(error).encode(),
                "error_class": type(error).__name__.encode(),
                "source_topic": topic.encode(),
                "source_partition": str(place[0]).encode(),
                "source_offset": str(place[1]).encode(),
                "schema_version": str(SCHEMA_VERSION).encode(),
            },
        )

    def count(self, terminal_keys: npt.NDArray[np.uint64], times_ms: npt.NDArray[np.int64]) -> None:
        """Add transactions to the activity entry that goes out with the commit."""
        if len(terminal_keys):
            self._opened().activity.append((terminal_keys, times_ms))

    def commit(self, offsets: list[TopicPartition], group: Any) -> None:
        """Start to commit the open transaction with the consumed offsets; see `committing`.

        Waits for the commit under way, if any.
        """
        transaction = self._opened()
        activity = transaction.take_activity()
        if activity is not None:
            _put(transaction.producer, self._settings.activity_topic, activity, {})
        self.settle()
        self._open, self._under_way = None, transaction
        self._committer.start(lambda: transaction.finish(offsets, group))

    def settle(self) -> None:
        """Wait for the commit under way, if any.

        Raises:
            StackError: It failed or hangs: this process must end; its successor starts from the
                last commit.
        """
        self._committer.settle()
        if self._under_way is not None:
            self._idle.append(self._under_way)
            self._under_way = None

    def abandon(self) -> None:
        """Give up the open transaction: readers never see it."""
        transaction, self._open = self._open, None
        if transaction is not None:
            self._idle.append(transaction)
            transaction.abort()

    def close(self) -> None:
        """Wait for the commit under way; end the thread and the connections."""
        self._committer.close()
        waiting = [self._under_way] if self._under_way and not self._committer.is_overdue else []
        for transaction in [*self._idle, *waiting]:
            with suppress(KafkaException):  # fenced: the commit that failed by it has said so
                transaction.producer.close()

    def _opened(self) -> _Transaction:
        """Return the open transaction; begins one where there is none."""
        if self._open is None:
            if not self._idle:
                self.settle()
            transaction = self._idle.popleft()
            transaction.begin()
            self._open = transaction
        return self._open
