"""Where logs end now.

Asked on a connection of its own: on a consumer's, the question would wait behind the fetch that the
broker keeps open until something arrives.
"""

from __future__ import annotations

from confluent_kafka import Consumer, KafkaException, TopicPartition

from flagger.errors import StackError
from flagger.kafka import client_config
from flagger.settings import Settings

__all__ = ["LogEnds"]

_TIMEOUT_S = 30.0


class LogEnds:
    """Asks the broker for the ends of partitions."""

    def __init__(self, settings: Settings) -> None:
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
        try:
            where = TopicPartition(topic, partition)
            return int(self._consumer.get_watermark_offsets(where, timeout=_TIMEOUT_S)[1])
        except KafkaException as error:
            raise StackError(f"Kafka did not tell where {topic} ends: {error}.") from error

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()
