"""Reads the transactions topic as a member of the consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from flagger.errors import BadMessageError, StackError
from flagger.kafka import client_config
from flagger.leave_group import leave_group
from flagger.settings import Settings
from flagger.tracing import traceparent_of
from streamer.group_progress import GroupProgress
from streamer.log_ends import LogEnds, require_delivery
from streamer.payloads import PayloadReader
from streamer.segments import Polled

__all__ = ["Assignment", "TransactionSource"]

_SESSION_TIMEOUT_MS = 10_000
_MAX_POLL_INTERVAL_MS = 1_800_000
"""While Triton is away nothing is polled: such a streamer keeps its partitions for half an hour.
A stuck one does not: its health check fails long before."""
_ANSWER_TIMEOUT_S = 30.0
_IDLE_S = 2.0
"""A partition that is read to its end and gave nothing for so long holds nobody back."""
_STUCK_S = 15.0
"""Nor does one that gave nothing for so long though its end is further: a transaction of somebody's
hangs there."""
_GROWTH_CHECK_S = 30.0
"""A topic that has grown is noticed after so long."""
_GROWTH_ANSWER_S = 1.0
_FETCH_WAIT_MS = 10
"""A fetch that waits at the broker knows nothing of partitions that joined it later."""
_FETCH_BACKOFF_MS = 10
"""librdkafka waits a second by default before it fetches again once its queue was full."""


class Assignment:
    """What to read of one partition.

    Attributes:
        start: Offset to read from: state is rebuilt from here. Beyond `committed` where Kafka has
            removed what is between.
        committed: Offset from which on nothing has been decided yet.
    """

    def __init__(self, start: int, committed: int) -> None:
        self.start = start
        self.committed = committed


class TransactionSource:
    """The consumer, with its partitions and how far they have been read.

    Args:
        settings: Broker, group, instance and topic.
        on_assign: Given partition -> committed offset (0: none), returns where to start.
        on_revoke: Called before partitions go away, with everything read still uncommitted.
        on_lost: Called when partitions are gone already: nothing may be committed any more.
        on_removed: See `LogEnds`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_assign: Callable[[dict[int, int]], dict[int, Assignment]],
        on_revoke: Callable[[], None],
        on_lost: Callable[[], None],
        on_removed: Callable[[str, int], None],
    ) -> None:
        self._topic = settings.transactions_topic
        self._payloads = PayloadReader.of(settings)
        self._traced = settings.otlp_endpoint is not None
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._on_lost = on_lost
        self._next: dict[int, int] = {}
        self._seen_s: dict[int, float] = {}
        self._assigned_s = 0.0
        # Partition -> offsets behind its last message that hold none: marks of transactions.
        self._blank: dict[int, int] = {}
        self._paused: set[int] = set()
        self._group_metadata: Any = None
        self._rebalances = 0
        self._closing = False
        self._ends = LogEnds(settings, on_removed)
        self._n_partitions = self._ends.partitions(self._topic)
        self._counted_s = time.monotonic()
        self._group = GroupProgress(settings, self._payloads)
        # Who comes back under the name that it had gets the partitions that it had, and no others:
        # where there are more now, nobody would ever read them (KAFKA-13435).
        member = f"{settings.consumer_group}-{settings.instance}-of-{self._n_partitions}"
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": settings.consumer_group,
                "group.instance.id": member,
                "session.timeout.ms": _SESSION_TIMEOUT_MS,
                "max.poll.interval.ms": _MAX_POLL_INTERVAL_MS,
                "enable.auto.commit": False,
                "auto.offset.reset": "error",  # see `log_ends`
                "isolation.level": "read_committed",
                # Eager: cooperative-sticky with manual commits is broken (librdkafka #4059).
                "partition.assignment.strategy": "range",
                "fetch.queue.backoff.ms": _FETCH_BACKOFF_MS,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
                "enable.partition.eof": True,
                "queued.min.messages": 50_000,
            }
        )
        self._consumer.subscribe(
            [self._topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lost
        )

    def group_metadata(self) -> Any:
        """Return what fences an old member's transactions.

        Asked for once an assignment: each time costs two switches of threads, and it changes with
        the generation of the group only, which comes with an assignment.
        """
        if self._group_metadata is None:
            self._group_metadata = self._consumer.consumer_group_metadata()
        return self._group_metadata

    def offsets(self, next_offsets: dict[int, int]) -> list[TopicPartition]:
        """Return partition -> next offset in the client library's form."""
        return [TopicPartition(self._topic, p, offset) for p, offset in next_offsets.items()]

    def poll(self, max_messages: int, wait_s: float, linger_s: float) -> Polled | None:
        """Wait for a first message, then take more.

        Args:
            max_messages: Most messages to return.
            wait_s: How long to wait for the first one.
            linger_s: How long to wait for more; 0: take what has arrived.
        """
        first = self._consumer.poll(wait_s)
        if first is None:
            return None
        rebalances = self._rebalances
        messages = self._consumer.consume(max_messages - 1, linger_s)
        if self._rebalances == rebalances:  # else it is read again, by its new owner
            messages.insert(0, first)
        good = [m for m in messages if m.error() is None]
        polled = self._polled(good) if good else None
        for message in messages:
            if message.error() is not None:
                self._take_event(message)
        return polled

    def _polled(self, good: list[Message]) -> Polled:
        n = len(good)
        values = [m.value() or b"" for m in good]
        originals: list[bytes] | None = None
        refused: dict[int, BadMessageError] = {}
        if self._payloads is not None:
            originals = values
            values, refused = self._payloads.to_json(values)
        polled = Polled(
            values=values,
            partition=np.fromiter((m.partition() for m in good), dtype=np.int16, count=n),
            offset=np.fromiter((m.offset() for m in good), dtype=np.int64, count=n),
            timestamp_ms=np.fromiter((m.timestamp()[1] for m in good), dtype=np.int64, count=n),
            traces=_traces(good) if self._traced else {},
            originals=originals,
            refused=refused,
        )
        now_s = time.monotonic()
        silence_s = now_s - max(self._seen_s.values(), default=self._assigned_s)
        if silence_s > _IDLE_S:  # of all: nobody polled, or the broker was away. Nobody is finished
            self._seen_s = {p: seen_s + silence_s for p, seen_s in self._seen_s.items()}
            self._assigned_s += silence_s
        for p, offset in polled.end_offsets().items():
            self._next[p] = offset
            self._seen_s[p] = now_s
            self._blank.pop(p, None)
        return polled

    def _take_event(self, message: Message) -> None:
        """Take note that a partition was read to its end; raise what cannot go on."""
        p = message.partition()
        if message.error().code() != KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
            require_delivery(message)
        elif p in self._next:
            self._blank[p] = max(message.offset() - self._next[p], 0)

    def readable(self, plan: dict[int, Assignment]) -> dict[int, Assignment]:
        """Return the plan, begun later where Kafka has removed the messages; see `LogEnds`."""
        return {
            p: Assignment(
                self._ends.first_left(self._topic, p, a.start, known=a.committed), a.committed
            )
            for p, a in plan.items()
        }

    def unfinished(self) -> set[int]:
        """Return the partitions that may still have something older than what others have.

        Those are the ones with unread messages, and those that gave some a moment ago. One that is
        empty from the start holds nobody back. Asks the broker; called rarely, see `alignment`.
        """
        found = set()
        for p, next_offset in self._next.items():
            quiet_s = time.monotonic() - self._seen_s.get(p, self._assigned_s)
            if (quiet_s <= _IDLE_S and p in self._seen_s) or (
                quiet_s <= _STUCK_S
                and next_offset + self._blank.get(p, 0) < self._ends.end(self._topic, p)
            ):
                found.add(p)
        return found

    def others_slowest_ms(self) -> int | None:
        """Return the oldest event time that another streamer still has to decide; None: nothing.

        Asks the broker, like `unfinished`.
        """
        return self._group.slowest_ms()

    def lag(self, committed: dict[int, int]) -> int:
        """Return how many messages lie behind these offsets, as the last fetch saw the log."""
        behind = 0
        for p in self._next:
            end = self._consumer.get_watermark_offsets(TopicPartition(self._topic, p), cached=True)
            if end is not None:
                behind += max(end[1] - self._blank.get(p, 0) - committed.get(p, 0), 0)
        return behind

    def growth(self) -> str | None:
        """Return why this consumer cannot go on once its topic has more partitions than it knows.

        Asks the broker every `_GROWTH_CHECK_S` seconds.
        """
        now_s = time.monotonic()
        if now_s - self._counted_s < _GROWTH_CHECK_S:
            return None
        self._counted_s = now_s
        try:
            count = self._ends.partitions(self._topic, _GROWTH_ANSWER_S)
        except StackError:  # those who need the broker say so
            return None
        if count <= self._n_partitions:
            return None
        return (
            f"Topic {self._topic} has {count} partitions now and had {self._n_partitions} when "
            f"this streamer started. Start it again: it reads all of them then."
        )

    def pause_only(self, partitions: set[int]) -> None:
        """Stop reading these partitions and go on with all others."""
        wanted = partitions & self._next.keys()
        for change, names in (
            (self._consumer.pause, wanted - self._paused),
            (self._consumer.resume, self._paused - wanted),
        ):
            if names:
                change([TopicPartition(self._topic, p) for p in names])
        self._paused = wanted

    def close(self) -> None:
        """Leave the group; the revoke callback runs first."""
        self._closing = True
        self._ends.close()
        self._group.close()
        if self._payloads is not None:
            self._payloads.close()
        leave_group(self._consumer)

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:  # a rebalance was under way: leaving comes next, nothing answers any more
            consumer.assign([])
            return
        try:
            committed = {
                tp.partition: max(tp.offset, 0)
                for tp in consumer.committed(partitions, timeout=_ANSWER_TIMEOUT_S)
            }
        except KafkaException as error:
            raise StackError(f"Kafka did not tell the committed offsets: {error}.") from error
        self._group_metadata = None
        plan = self._on_assign(committed)
        self._group.restart(plan)
        self._next = {p: a.start for p, a in plan.items()}
        self._blank = {}
        self._seen_s = {}
        self._assigned_s = time.monotonic()
        self._paused = set()
        consumer.assign(
            [TopicPartition(self._topic, p, a.start or OFFSET_BEGINNING) for p, a in plan.items()]
        )

    def _revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalances += 1
        self._on_revoke()
        self._next = {}
        consumer.unassign()

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalances += 1
        self._on_lost()
        self._next = {}
        consumer.unassign()


def _traces(messages: list[Any]) -> dict[int, str]:
    found = ((i, traceparent_of(message.headers())) for i, message in enumerate(messages))
    return {i: traceparent for i, traceparent in found if traceparent is not None}
