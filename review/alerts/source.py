"""Reads the alerts topic as a group that commits how far each route has got."""

from __future__ import annotations

import logging
from collections.abc import Callable

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from flagger.errors import StackError
from flagger.kafka import client_config, is_fatal
from flagger.leave_group import leave_group
from flagger.settings import Settings

__all__ = ["AlertSource"]

_MAX_MESSAGES = 1_000
_SESSION_TIMEOUT_MS = 10_000
_ANSWER_TIMEOUT_S = 30.0
_FETCH_WAIT_MS = 10
"""A fetch that waits at the broker knows nothing of what is committed meanwhile."""
_FETCH_BACKOFF_MS = 10
_REFRESH_MS = 10_000
"""A topic that is made only after this service has started is found within so long."""
_log = logging.getLogger(__name__)


class AlertSource:
    """The consumer.

    Args:
        settings: Broker, topic and group.
        on_assign: Given partition -> (committed offset, below 0: none; its metadata); returns
            nothing. Reading starts at the committed offset, or at the beginning.
        on_revoke: Called before partitions go away; what it commits still counts.
        on_lost: Called when they are gone already.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_assign: Callable[[dict[int, tuple[int, str | None]]], None],
        on_revoke: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._topic = settings.alerts_topic
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._on_lost = on_lost
        self._behind: set[int] = set()
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": settings.alerts_group,
                "group.instance.id": f"{settings.alerts_group}-{settings.instance}",
                "session.timeout.ms": _SESSION_TIMEOUT_MS,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "partition.assignment.strategy": "range",
                "topic.metadata.refresh.interval.ms": _REFRESH_MS,
                "fetch.queue.backoff.ms": _FETCH_BACKOFF_MS,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
            }
        )
        self._consumer.subscribe(
            [self._topic], on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lost
        )

    def poll(self, wait_s: float) -> list[Message]:
        """Return what has arrived; waits for a first message.

        Raises:
            StackError: Kafka refuses this consumer for good.
        """
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        good = []
        for message in (first, *self._consumer.consume(_MAX_MESSAGES - 1, 0)):
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
                self._behind.discard(message.partition())
            elif is_fatal(error):
                raise StackError(
                    f"Kafka refuses this consumer: {error}. If another `flagger alerts run` has "
                    f"the same FLAGGER_INSTANCE, give each its own."
                )
        return good

    @property
    def catching_up(self) -> bool:
        """True while what had come before the partitions did is not read to its end."""
        return bool(self._behind)

    def commit(self, offsets: dict[int, tuple[int, str]]) -> str:
        """Commit partition -> (next offset, metadata); return "" or why Kafka did not take it."""
        places = [TopicPartition(self._topic, p, *where) for p, where in offsets.items()]
        try:
            self._consumer.commit(offsets=places, asynchronous=False)
        except KafkaException as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Leave the group; `on_revoke` is called first."""
        leave_group(self._consumer)

    def _assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            found = consumer.committed(partitions, timeout=_ANSWER_TIMEOUT_S)
        except KafkaException as error:
            raise StackError(f"Kafka did not tell the committed offsets: {error}.") from error
        self._behind = {tp.partition for tp in found}
        self._on_assign({tp.partition: (tp.offset, tp.metadata) for tp in found})
        consumer.assign(
            [
                TopicPartition(self._topic, tp.partition, max(tp.offset, 0) or OFFSET_BEGINNING)
                for tp in found
            ]
        )

    def _revoke(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._on_revoke()
        self._behind = set()
        consumer.unassign()

    def _lost(self, consumer: Consumer, _partitions: list[TopicPartition]) -> None:
        self._on_lost()
        self._behind = set()
        consumer.unassign()
