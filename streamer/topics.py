"""The topics: their names come from the settings, their shape is stated here."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from flagger.errors import BrokerAwayError, ConfigurationError, StackError
from flagger.kafka import MAX_MESSAGE_BYTES
from flagger.kafka_access import connect
from flagger.settings import Settings

__all__ = ["ensure_topics"]

_TIMEOUT_S = 30.0
_NOT_YET = frozenset(
    {
        KafkaError._TIMED_OUT,  # noqa: SLF001 - the library's names
        KafkaError._TRANSPORT,  # noqa: SLF001
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_CONTROLLER,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.INVALID_REPLICATION_FACTOR,
    }
)
"""What a cluster says to a new topic while its brokers still start."""
MAX_TRANSACTION_BYTES = 2 * 1024 * 1024
"""What the broker accepts; above `wire.limits.MAX_MESSAGE_BYTES` it becomes a dead letter."""


def ensure_topics(
    settings: Settings, *, replication: int = -1, timeout_s: float = _TIMEOUT_S
) -> None:
    """Create the topics that are missing; check that those there fit together.

    Decisions and alerts get as many partitions as the transactions have, and may have more: they
    have to grow first.

    Args:
        settings: Names, and partitions of the transactions where that topic is missing.
        replication: Copies of each partition; -1: the broker's default.
        timeout_s: How long to wait for a first answer.

    Raises:
        ConfigurationError: Topics exist whose partitions do not fit, or the broker refuses us.
        BrokerAwayError: The broker does not answer, or is not ready.
        StackError: It refuses to list or create the topics.
    """
    try:
        admin, found = connect(settings, AdminClient, KafkaException, timeout_s)
        partitions = {name: len(topic.partitions) for name, topic in found.items()}
        shape = _shape(settings, partitions)
        missing = [
            NewTopic(
                name,
                num_partitions=count,
                replication_factor=replication,
                config={"max.message.bytes": str(limit)},
            )
            for name, (count, limit) in shape.items()
            if name not in partitions
        ]
        for future in admin.create_topics(missing).values() if missing else ():
            _require_created(future)
    except KafkaException as error:
        kind = BrokerAwayError if error.args[0].code() in _NOT_YET else StackError
        raise kind(
            f"Kafka at {settings.kafka_bootstrap_servers} did not list or create the topics: "
            f"{error}. Check the address and this user's rights."
        ) from error
    for name in (settings.labels_topic, settings.activity_topic):
        if partitions.get(name, 1) != 1:
            raise ConfigurationError(f"Topic {name} has {partitions[name]} partitions; it needs 1.")
    wanted, _ = shape[settings.transactions_topic]
    for name in (settings.decisions_topic, settings.alerts_topic):
        if partitions.get(name, wanted) < wanted:
            raise ConfigurationError(
                f"Topic {name} has {partitions[name]} partitions and "
                f"{settings.transactions_topic} has {wanted}; a decision stands in the partition "
                f"of its transaction. Add some: kafka-topics.sh --alter --topic {name} "
                f"--partitions {wanted}."
            )


def _shape(settings: Settings, partitions: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return topic -> partitions and most bytes of a message, given the partitions there are."""
    # Decisions stand in the partition of their transaction.
    many = partitions.get(settings.transactions_topic, settings.partitions)
    return {
        settings.transactions_topic: (many, MAX_TRANSACTION_BYTES),
        settings.decisions_topic: (many, MAX_MESSAGE_BYTES),
        settings.alerts_topic: (many, MAX_MESSAGE_BYTES),
        # One partition: their offsets order all labels (activity) and stand in terminals' records.
        settings.labels_topic: (1, MAX_MESSAGE_BYTES),
        settings.activity_topic: (1, MAX_MESSAGE_BYTES),
        settings.dead_letter_topic: (1, MAX_MESSAGE_BYTES),
    }


def _require_created(future: Future[None]) -> None:
    """Wait for a new topic; one that somebody else has made in the meantime will do."""
    try:
        future.result(_TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise
