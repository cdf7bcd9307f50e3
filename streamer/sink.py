"""Writes decisions, alerts, dead letters, activity and the consumed offsets: one transaction."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from confluent_kafka import KafkaException, Producer, TopicPartition

from flagger.errors import StackError
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.wire.messages import SCHEMA_VERSION
from streamer.side_logs import encode_activity

__all__ = ["DecisionSink"]

_TIMEOUT_S = 30.0
_LINGER_MS = 2
_RETRY_BACKOFF_MS = 2
"""The broker puts a transaction off for a moment while the markers of the last one are written.
librdkafka's own 100 ms would then be the duration of every commit."""
_MAX_QUEUED_MESSAGES = 500_000


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


class DecisionSink:
    """A transactional producer. One transaction is open from the first output to `commit`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer = Producer(
            producer_config(settings)
            | {
                "transactional.id": f"{settings.consumer_group}-{settings.instance}",
                "linger.ms": _LINGER_MS,
                "retry.backoff.ms": _RETRY_BACKOFF_MS,
                "retry.backoff.max.ms": 2 * _RETRY_BACKOFF_MS,
                "queue.buffering.max.messages": _MAX_QUEUED_MESSAGES,
            }
        )
        self._open = False
        self._opened_s = 0.0
        self._activity: list[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]] = []
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commit: Future[None] | None = None
        with _mapped("start transactions"):
            self._producer.init_transactions(_TIMEOUT_S)

    @property
    def busy(self) -> bool:
        """True while a commit is under way: nothing can be written."""
        return self._commit is not None and not self._commit.done()

    @property
    def has_output(self) -> bool:
        """True if a transaction is open."""
        return self._open

    @property
    def age_s(self) -> float:
        """Seconds since the open transaction began."""
        return time.monotonic() - self._opened_s if self._open else 0.0

    def write(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes],
        partitions: Sequence[int],
        timestamps_ms: Sequence[int],
    ) -> None:
        """Add messages, each to the given partition with the given timestamp."""
        self._begin()
        produce = self._producer.produce
        for value, key, partition, timestamp_ms in zip(
            values, keys, partitions, timestamps_ms, strict=True
        ):
            while True:
                try:
                    # By position: with names a call takes half as long again.
                    produce(topic, value, key, partition, None, None, timestamp_ms)
                except BufferError:
                    self._producer.poll(0.01)
                else:
                    break
        self._producer.poll(0)

    def dead_letter(self, value: bytes, *, topic: str, place: tuple[int, int], error: Any) -> None:
        """Add one message that can never be decided, with where it came from and why.

        Args:
            value: The original bytes.
            topic: Where it came from.
            place: Partition and offset there.
            error: A FlaggerError.
        """
        self._begin()
        self._producer.produce(
            self._settings.dead_letter_topic,
            value,
            headers={
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
            self._begin()
            self._activity.append((terminal_keys, times_ms))

    def commit(self, offsets: list[TopicPartition], group: Any) -> None:
        """Start to commit the open transaction with the consumed offsets; see `busy`, `settle`."""
        self._begin()
        if self._activity:
            keys = np.concatenate([keys for keys, _ in self._activity])
            times_ms = np.concatenate([times for _, times in self._activity])
            self._activity.clear()
            self._producer.produce(
                self._settings.activity_topic, encode_activity(keys, times_ms), partition=0
            )
        self._open = False
        self._commit = self._committer.submit(self._finish, offsets, group)

    def settle(self) -> None:
        """Wait for the commit under way, if any.

        Raises:
            StackError: It failed: this process must end; its successor starts from the last commit.
        """
        if self._commit is not None:
            self._commit.result()
            self._commit = None

    def abandon(self) -> None:
        """Give up the open transaction: readers never see it."""
        if self._open:
            self._open = False
            self._activity.clear()
            with _mapped("abort"):
                self._producer.abort_transaction(_TIMEOUT_S)

    def close(self) -> None:
        """Wait for the commit under way; end the thread and the connection."""
        self._committer.shutdown(wait=True)
        self._producer.close()

    def _begin(self) -> None:
        if not self._open:
            self.settle()
            with _mapped("begin"):
                self._producer.begin_transaction()
            self._open = True
            self._opened_s = time.monotonic()

    def _finish(self, offsets: list[TopicPartition], group: Any) -> None:
        with _mapped("commit"):
            self._producer.send_offsets_to_transaction(offsets, group, _TIMEOUT_S)
            self._producer.commit_transaction(_TIMEOUT_S)
