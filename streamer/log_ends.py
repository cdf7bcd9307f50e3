"""Where logs begin and end now, and what that says of a place where somebody wants to read on.

Kafka removes old messages (retention), and a topic can be deleted and made anew. The client library
would go on at the beginning or the end without a word; here the first is said and counted, and the
second ends the streamer.

Asked on a connection of its own: on a consumer's, the question would wait behind the fetch that the
broker keeps open until something arrives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from flagger.errors import ConfigurationError, StackError
from flagger.kafka import client_config, is_fatal
from flagger.settings import Settings

__all__ = ["LogEnds", "require_delivery"]

_TIMEOUT_S = 30.0
_GONE = frozenset(
    {
        KafkaError._AUTO_OFFSET_RESET,  # noqa: SLF001 - the library's name
        KafkaError.OFFSET_OUT_OF_RANGE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
    }
)
_log = logging.getLogger(__name__)


def require_delivery(message: Message) -> None:
    """Raise StackError where an error says that what comes next will never be delivered."""
    error = message.error()
    if is_fatal(error):
        raise StackError(
            f"Kafka refuses to deliver {message.topic()}: {error}. If another streamer runs under "
            f"the same FLAGGER_INSTANCE, give each its own."
        )
    if error.code() in _GONE:
        raise StackError(
            f"Kafka no longer has what comes next in partition {message.partition()} of "
            f"{message.topic()} ({error}): its retention has removed it, or the topic was made "
            f"anew. Start this streamer again: it says what is missing."
        )


class LogEnds:
    """Asks the broker for the ends of partitions.

    Args:
        settings: Where Kafka is.
        on_removed: Called with a topic and how many messages were removed before they were read.
    """

    def __init__(
        self,
        settings: Settings,
        on_removed: Callable[[str, int], None] = lambda _topic, _count: None,
    ) -> None:
        self._on_removed = on_removed
        self._consumer = Consumer(
            client_config(settings)
            | {
                # It reads nothing and joins no group; the client library wants a name all the same.
                "group.id": "flagger-log-ends",
                # A transaction that has just been committed counts, its markers there or not.
                "isolation.level": "read_uncommitted",
            }
        )

    def end(self, topic: str, partition: int) -> int:
        """Return the offset that the next message will have.

        Raises:
            StackError: The broker did not answer.
        """
        return self._bounds(topic, partition)[1]

    def first_left(self, topic: str, partition: int, wanted: int, known: int = 0) -> int:
        """Return where to read on: at `wanted`, or at the first message that is left behind it.

        Args:
            topic: The log.
            partition: Its partition.
            wanted: Offset; 0: from the beginning.
            known: Offset up to which the log has been read before, at least `wanted`.

        Raises:
            ConfigurationError: The log ends before what has been read of it.
            StackError: The broker did not answer.
        """
        begin, end = self._bounds(topic, partition)
        if max(wanted, known) > end:
            raise ConfigurationError(
                f"Partition {partition} of {topic} has been read up to offset "
                f"{max(wanted, known)}, but it ends at {end}: it was made anew or has lost its "
                f"end, and the state store holds the state of another log. Use an empty Valkey "
                f"database and another FLAGGER_CONSUMER_GROUP, or `flagger restore --new-log`."
            )
        if begin > wanted:
            _log.warning(
                "Partition %d of %s begins at offset %d: what was between %d and there is in no "
                "record that is rebuilt from it.", partition, topic, begin, wanted
            )  # fmt: skip
            self._on_removed(topic, max(begin - (wanted or known or begin), 0))
        return max(wanted, begin)

    def _bounds(self, topic: str, partition: int) -> tuple[int, int]:
        where = TopicPartition(topic, partition)
        try:
            begin, end = self._consumer.get_watermark_offsets(where, timeout=_TIMEOUT_S)
        except KafkaException as error:
            raise StackError(f"Kafka did not tell where {topic} ends: {error}.") from error
        return int(begin), int(end)

    def partitions(self, topic: str, timeout_s: float = _TIMEOUT_S) -> int:
        """Return how many partitions a topic has now.

        Raises:
            StackError: The broker did not answer.
        """
        try:
            found = self._consumer.list_topics(topic, timeout=timeout_s)
        except KafkaException as error:
            raise StackError(f"Kafka did not describe {topic}: {error}.") from error
        return len(found.topics[topic].partitions)

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
