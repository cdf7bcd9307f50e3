"""From the alerts topic into the case store, and the desk's labels the other way.

A flag's offset is committed after its case is on disk. A crash in between reads the flag again, and
the case store knows its id: nothing is lost, nothing stands there twice. While the database or
Kafka is away everything waits where it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from confluent_kafka import Consumer, Message, TopicPartition

from flagger.alert import parse_alert
from flagger.errors import BadMessageError, CaseStoreError, StateStoreError
from flagger.health import Health
from flagger.settings import Settings
from review.intake import Intake
from review.life import CaseLife
from review.metrics import DeskMetrics
from review.relay import LabelRelay, LabelThread
from review.store import MAX_ROWS, CaseStore, Flag

__all__ = ["DeskConsumer", "group_of"]

logger = logging.getLogger(__name__)

_POLL_S = 0.1
"""How long to wait for alerts in a round."""
_KEEP_UP_S = 5.0
"""How often counts are read and claims that ran out given back."""


def group_of(settings: Settings) -> str:
    """Return the consumer group of the desk beside a streamers' group."""
    return f"{settings.consumer_group}-desk"


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
        self._intake = Intake(
            settings,
            settings.alerts_topic,
            group_of(settings),
            on_assign=self._assigned,
            on_revoke=self._revoked,
        )

    def run(self) -> None:
        """Work until `keep_going` says no.

        Raises:
            StackError: Kafka will never deliver again to this consumer; start it anew.
        """
        try:
            while self._keep_going():
                self._health.came_round()
                for thread in (self._labels, self._side_thread):
                    if thread is not None and thread.failure is not None:
                        raise thread.failure
                self._take(self._intake.read(MAX_ROWS, _POLL_S))
                self._keep_up()
        finally:
            self._intake.close()
            self._labels.close()

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._health.goes_on("alerts")
        if any(partition.partition == 0 for partition in partitions):
            self._labels.active.set()

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._labels.active.clear()
        self._health.waits("alerts", "Kafka has assigned no partition at the moment.")

    def _take(self, messages: Sequence[Message]) -> None:
        """Store messages, however long it takes."""
        if not messages:
            return
        flags = [flag for flag in map(self._read, messages) if flag is not None]
        stored = self._intake.store(
            messages,
            lambda: self._store.add(flags, self._clock_ms()),
            on_trouble=self._trouble,
            keep_going=self._keep_going,
        )
        if stored is None:
            return  # told to end
        self._health.goes_on("case_store")
        self._metrics.stored.inc(stored.new)
        self._metrics.repeats.inc(stored.repeats)
        self._metrics.refused.inc(stored.refused)
        now_ms = self._clock_ms()
        for flag in flags:
            sent_ms = flag.flagged_at_ms - flag.alert.latency_ms
            self._metrics.stored_after_s.observe(max(now_ms - sent_ms, 0) / 1000)

    def _read(self, message: Message) -> Flag | None:
        try:
            alert = parse_alert(message.value() or b"")
        except BadMessageError as error:
            self._metrics.refused.inc()
            where = f"{message.topic()} {message.partition()}/{message.offset()}"
            logger.error("No alert at %s: %s", where, error.reason)
            return None
        return Flag(alert, int(message.timestamp()[1] + alert.latency_ms))

    def _trouble(self, error: CaseStoreError | StateStoreError) -> None:
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
        self._metrics.lag.set(self._intake.lag)
