"""Reads a topic as a group, and commits what it has read only when it is stored.

What the desk's two consumers share. A crash between storing and committing reads messages again:
what they are stored in must know them. While it is away, a batch is tried again until it is in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from flagger.errors import CaseStoreError, StackError, StateStoreError
from flagger.kafka import client_config, is_fatal
from flagger.leave_group import leave_group
from flagger.settings import Settings

__all__ = ["Intake", "consumer_config", "stay_in_group"]

logger = logging.getLogger(__name__)

_RETRY_S = 1.0
"""Pause after a store did not take a batch."""
_SESSION_MS = 10_000
"""After so long others take over the partitions of a consumer that is gone for good."""
_FETCH_WAIT_MS = 50
_TOPIC_REFRESH_MS = 5_000
"""How soon a topic that did not exist is found."""
T = TypeVar("T")
_Assigned = Callable[[Consumer, list[TopicPartition]], None]


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


class Intake:
    """One topic, read in batches.

    Args:
        settings: Broker and instance.
        topic: What to read.
        group: Consumer group; several processes share the partitions.
        on_assign: Told of new partitions.
        on_revoke: Told when partitions go away.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        group: str,
        *,
        on_assign: _Assigned = lambda *_: None,
        on_revoke: _Assigned = lambda *_: None,
    ) -> None:
        self._topic = topic
        self._instance = settings.instance
        self._consumer = Consumer(consumer_config(settings, group))
        self._consumer.subscribe([topic], on_assign=on_assign, on_revoke=on_revoke)

    def read(self, most: int, wait_s: float, *, gather_s: float = 0.0) -> list[Message]:
        """Return a batch of messages.

        Args:
            most: Its limit.
            wait_s: How long to wait for a first message.
            gather_s: How long to wait for a full batch once there is one.

        Raises:
            StackError: Kafka will never deliver again to this consumer; start it anew.
        """
        first = self._consumer.poll(wait_s)
        if first is None:
            return []
        messages = []
        for message in (first, *self._consumer.consume(most - 1, gather_s)):
            error = message.error()
            if error is None:
                messages.append(message)
            elif is_fatal(error):
                raise StackError(
                    f"Kafka refuses this consumer of {self._topic}: {error}. Does another one run "
                    f"under the same FLAGGER_INSTANCE ({self._instance})? If not, start it again."
                )
            else:  # the topic is not there yet, a broker is away: librdkafka tries again
                logger.warning("Kafka: %s", error)
        return messages

    def store(
        self,
        messages: Sequence[Message],
        write: Callable[[], T],
        *,
        on_trouble: Callable[[CaseStoreError | StateStoreError], None],
        keep_going: Callable[[], bool],
    ) -> T | None:
        """Write what messages hold, however long it takes, and commit their offsets.

        Args:
            messages: What is committed then.
            write: Stores; is called again after one of the two errors.
            on_trouble: Told of each.
            keep_going: Asked after each; False gives up.

        Returns:
            What `write` did; None if it was given up: the messages are read again.
        """
        while True:
            try:
                written = write()
            except (CaseStoreError, StateStoreError) as error:
                on_trouble(error)
                if not keep_going():
                    return None
                stay_in_group(self._consumer, _RETRY_S)
            else:
                break
        self._commit(messages)
        return written

    def _commit(self, messages: Sequence[Message]) -> None:
        ends = {(m.topic(), m.partition()): m.offset() + 1 for m in messages}
        try:
            self._consumer.commit(
                offsets=[TopicPartition(t, p, end) for (t, p), end in ends.items()],
                asynchronous=False,
            )
        except KafkaException as error:  # they are read again, and known
            logger.warning(
                "The offsets of %d messages of %s are not committed: %s",
                len(messages),
                self._topic,
                error,
            )

    @property
    def lag(self) -> int:
        """Messages between our positions and what the broker last told of the ends."""
        behind = 0
        for partition in self._consumer.position(self._consumer.assignment()):
            _, high = self._consumer.get_watermark_offsets(partition, cached=True)
            if high > 0 and partition.offset >= 0:
                behind += max(high - partition.offset, 0)
        return behind

    def close(self) -> None:
        """Leave the group."""
        leave_group(self._consumer)
