"""Reads a topic from its beginning to where it ends now, in pieces, as committed."""

from __future__ import annotations

import time
from collections.abc import Iterator

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from flagger.errors import ConfigurationError, StackError
from flagger.kafka import client_config, is_fatal
from flagger.kafka_access import require_access
from flagger.settings import Settings

__all__ = ["read_values"]

_MESSAGES = 20_000
"""Most messages in one piece."""
_STALLED_S = 60.0
_POLL_S = 0.5
_METADATA_S = 30.0


def read_values(settings: Settings, topic: str) -> Iterator[list[bytes]]:
    """Yield the values of all messages, a piece at a time; each partition in log order.

    Raises:
        ConfigurationError: There is no such topic, no address of Kafka, or it refuses us.
        StackError: Kafka refuses this reader, or sends nothing for a minute.
    """
    require_access(settings, AdminClient, KafkaException)
    consumer = Consumer(
        client_config(settings)
        | {
            "group.id": "flagger-train",  # nothing is committed
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )
    try:
        found = consumer.list_topics(topic, timeout=_METADATA_S).topics[topic]
        if found.error is not None:
            raise ConfigurationError(
                f"Topic {topic} cannot be read ({found.error}). Is the address of Kafka right, and "
                f"has `flagger stream` run there?"
            )
        left = set(found.partitions)
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in left])
        heard_s = time.monotonic()
        while left:
            values = []
            messages = consumer.consume(_MESSAGES, _POLL_S)
            for message in messages:
                error = message.error()
                if error is None:
                    values.append(message.value() or b"")
                elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
                    left.discard(message.partition())
                elif is_fatal(error):
                    raise StackError(f"Kafka refuses this reader of {topic}: {error}.")
            if messages:
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > _STALLED_S:
                raise StackError(f"Kafka sent nothing of {topic} for {_STALLED_S:.0f} s.")
            if values:
                yield values
    finally:
        consumer.close()
