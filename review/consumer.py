"""From the alerts topic into the case store, and the desk's labels the other way.

A flag's offset is committed after its case is on disk. A crash in between reads the flag again, and
the case store knows its id: nothing is lost, nothing stands there twice. While the database or
Kafka is away everything waits where it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from flagger.alert import parse_alert
from flagger.errors import BadMessageError, CaseStoreError, StackError
from flagger.health import Health
from flagger.kafka import client_config, is_fatal
from flagger.settings import Settings
from review.life import CaseLife
from review.metrics import DeskMetrics
from review.relay import LabelRelay, LabelThread
from review.store import MAX_ROWS, CaseStore, Flag

__all__ = ["DeskConsumer", "consumer_config", "group_of", "stay_in_group"]

logger = logging.getLogger(__name__)

_POLL_S = 0.1
"""How long to wait for alerts in a round."""
_RETRY_S = 1.0
"""Pause after a failed call to the database."""
_KEEP_UP_S = 5.0
"""How often counts are read and claims that ran out given back."""
_SESSION_MS = 10_000
"""After so long others take over the partitions of a consumer that is gone for good."""
_FETCH_WAIT_MS = 50
_TOPIC_REFRESH_MS = 5_000
"""How soon an alerts topic that did not exist is found."""


def group_of(settings: Settings) -> str:
    """Return the consumer group of the desk beside a streamers' group."""
    return f"{settings.consumer_group}-desk"


def consumer_config(settings: Settings, group: str) -> dict[str, Any]:
    """Return how the desk reads a topic: what is committed, from the oldest message on."""
    return client_config(settings) | {
        "group.id": group,
        # A restart under the same name takes its partitions over at once.
        "group.instance.id": f"desk-{settings.instance}",
        "session.timeout.ms": _SESSION_MS,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "partition.assignment.strategy": "range",
        "fetch.wait.max.ms": _FETCH_WAIT_MS,
        "topic.metadata.refresh.interval.ms": _TOPIC_REFRESH_MS,
    }


def stay_in_group(consumer: Consumer, wait_s: float) -> None:
    """Wait without leaving the group, taking no message: the ones in hand come first."""
    consumer.pause(consumer.assignment())
    message = consumer.poll(wait_s)
    if message is not None and message.error() is None:
        # Of a partition that became ours just now and was not paused: it is read again.
        where = TopicPartition(message.topic(), message.partition(), message.offset())
        consumer.seek(where)
    consumer.resume(consumer.assignment())


class SideThread(Protocol):
    """A thread that works beside the consumer."""

    @property
    def failure(self) -> Exception | None:
        """What ended it against its will."""


class DeskConsumer:
    """Stores flags, sends labels, gives back expired claims; several share the partitions.

    The one that holds the first partition of the alerts topic sends the labels, so that two never
    mix their order.

    Args:
        settings: Broker, topics and group.
        store: Where cases go.
        life: Gives back expired claims.
        keep_going: Asked in every round; False ends `run`.
        clock_ms: Returns the current time, epoch milliseconds.
        side_thread: What else this process does; if it fails, `run` does.
    """

    def __init__(
        self,
        settings: Settings,
        store: CaseStore,
        life: CaseLife,
        metrics: DeskMetrics,
        health: Health,
        *,
        keep_going: Callable[[], bool] = lambda: True,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        side_thread: SideThread | None = None,
    ) -> None:
        self._side_thread = side_thread
        self._settings = settings
        self._store = store
        self._life = life
        self._metrics = metrics
        self._health = health
        self._keep_going = keep_going
        self._clock_ms = clock_ms
        self._kept_up_s = 0.0
        relay = LabelRelay(settings, store, metrics, clock_ms)
        self._labels = LabelThread(relay, metrics, health)
        self._consumer = Consumer(consumer_config(settings, group_of(settings)))

    def run(self) -> None:
        """Work until `keep_going` says no.

        Raises:
            StackError: Kafka will never deliver again to this consumer; start it anew.
        """
        self._consumer.subscribe(
            [self._settings.alerts_topic], on_assign=self._assigned, on_revoke=self._revoked
        )
        try:
            while self._keep_going():
                self._health.came_round()
                for thread in (self._labels, self._side_thread):
                    if thread is not None and thread.failure is not None:
                        raise thread.failure
                self._take(self._poll())
                self._keep_up()
        finally:
            self._consumer.close()
            self._labels.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._health.goes_on("alerts")
        if any(partition.partition == 0 for partition in partitions):
            self._labels.active.set()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._labels.active.clear()
        self._health.waits("alerts", "Kafka has assigned no partition at the moment.")

    def _poll(self) -> list[Message]:
        first = self._consumer.poll(_POLL_S)
        if first is None:
            return []
        messages = []
        for message in (first, *self._consumer.consume(MAX_ROWS - 1, 0)):
            error = message.error()
            if error is None:
                messages.append(message)
            elif is_fatal(error):
                raise StackError(
                    f"Kafka refuses this consumer: {error}. Does another one run under the same "
                    f"FLAGGER_INSTANCE ({self._settings.instance})? If not, start it again."
                )
            else:  # the topic is not there yet, a broker is away: librdkafka tries again
                logger.warning("Kafka: %s", error)
        return messages

    def _take(self, messages: Sequence[Message]) -> None:
        """Store messages, however long it takes, and commit their offsets."""
        if not messages:
            return
        flags = [flag for flag in map(self._read, messages) if flag is not None]
        if not self._store_flags(flags):
            return  # told to end: they are read again
        ends: dict[tuple[str, int], int] = {}
        for message in messages:
            ends[message.topic(), message.partition()] = message.offset() + 1
        try:
            self._consumer.commit(
                offsets=[TopicPartition(t, p, end) for (t, p), end in ends.items()],
                asynchronous=False,
            )
        except KafkaException as error:  # they are read again, and known
            logger.warning("The offsets of %d flags are not committed: %s", len(messages), error)

    def _read(self, message: Message) -> Flag | None:
        try:
            alert = parse_alert(message.value() or b"")
        except BadMessageError as error:
            self._metrics.refused.inc()
            where = f"{message.topic()} {message.partition()}/{message.offset()}"
            logger.error("No alert at %s: %s", where, error.reason)
            return None
        return Flag(alert, int(message.timestamp()[1] + alert.latency_ms))

    def _store_flags(self, flags: list[Flag]) -> bool:
        """Return True once the flags are on disk, False if told to end before."""
        while True:
            try:
                stored = self._store.add(flags, self._clock_ms())
            except CaseStoreError as error:
                self._trouble(error)
                if not self._keep_going():
                    return False
                stay_in_group(self._consumer, _RETRY_S)
            else:
                break
        self._health.goes_on("case_store")
        self._metrics.stored.inc(stored.new)
        self._metrics.repeats.inc(stored.repeats)
        self._metrics.refused.inc(stored.refused)
        now_ms = self._clock_ms()
        for flag in flags:
            sent_ms = flag.flagged_at_ms - flag.alert.latency_ms
            self._metrics.stored_after_s.observe(max(now_ms - sent_ms, 0) / 1000)
        return True

    def _trouble(self, error: CaseStoreError) -> None:
        self._metrics.store_errors.inc()
        if not self._health.is_waiting_for("case_store"):
            logger.error("%s", error)
        self._health.waits("case_store", str(error))

    def _keep_up(self) -> None:
        if time.monotonic() - self._kept_up_s < _KEEP_UP_S:
            return
        self._kept_up_s = time.monotonic()
        try:
            self._metrics.expired.inc(self._life.release_expired())
            self._metrics.show_cases(self._store.count_states())
            oldest_ms = self._store.oldest_new_ms()
        except CaseStoreError as error:
            self._trouble(error)
            return
        self._health.goes_on("case_store")
        age_ms = 0 if oldest_ms is None else max(self._clock_ms() - oldest_ms, 0)
        self._metrics.oldest_new_s.set(age_ms / 1000)
        self._metrics.lag.set(self._lag())

    def _lag(self) -> int:
        """Return the messages between our positions and what the broker last told of the ends."""
        behind = 0
        for partition in self._consumer.position(self._consumer.assignment()):
            _, high = self._consumer.get_watermark_offsets(partition, cached=True)
            if high > 0 and partition.offset >= 0:
                behind += max(high - partition.offset, 0)
        return behind
