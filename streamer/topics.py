"""The topics: their names come from the settings, their shape is stated here."""

from __future__ import annotations

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic

from flagger.errors import ConfigurationError, StackError
from flagger.kafka import MAX_MESSAGE_BYTES, client_config
from flagger.settings import Settings

__all__ = ["ensure_topics"]

_TIMEOUT_S = 30.0
MAX_TRANSACTION_BYTES = 2 * 1024 * 1024
"""What the broker accepts; above `wire.limits.MAX_MESSAGE_BYTES` it becomes a dead letter."""


def ensure_topics(settings: Settings, *, replication: int = -1) -> None:
    """Create the topics that are missing; check that those there fit together.

    Args:
        settings: Names and number of partitions.
        replication: Copies of each partition; -1: the broker's default.

    Raises:
        ConfigurationError: Topics exist whose partitions do not fit.
        StackError: The broker does not answer or refuses.
    """
    shape = {
        settings.transactions_topic: (settings.partitions, MAX_TRANSACTION_BYTES),
        settings.decisions_topic: (settings.partitions, MAX_MESSAGE_BYTES),
        settings.alerts_topic: (settings.partitions, MAX_MESSAGE_BYTES),
        # One partition: their offsets order all labels (activity) and stand in terminals' records.
        settings.labels_topic: (1, MAX_MESSAGE_BYTES),
        settings.activity_topic: (1, MAX_MESSAGE_BYTES),
        settings.dead_letter_topic: (1, MAX_MESSAGE_BYTES),
    }
    try:
        admin = AdminClient(client_config(settings))
        found = admin.list_topics(timeout=_TIMEOUT_S).topics
        missing = [
            NewTopic(
                name,
                num_partitions=partitions,
                replication_factor=replication,
                config={"max.message.bytes": str(limit)},
            )
            for name, (partitions, limit) in shape.items()
            if name not in found
        ]
        for future in admin.create_topics(missing).values() if missing else ():
            future.result(_TIMEOUT_S)
    except KafkaException as error:
        raise StackError(
            f"Kafka at {settings.kafka_bootstrap_servers} did not list or create the topics: "
            f"{error}. Check the address and this user's rights."
        ) from error
    partitions = {name: len(found[name].partitions) for name in shape if name in found}
    for name in (settings.labels_topic, settings.activity_topic):
        if partitions.get(name, 1) != 1:
            raise ConfigurationError(f"Topic {name} has {partitions[name]} partitions; it needs 1.")
    transactions = partitions.get(settings.transactions_topic, settings.partitions)
    for name in (settings.decisions_topic, settings.alerts_topic):
        if partitions.get(name, settings.partitions) != transactions:
            raise ConfigurationError(
                f"Topic {name} has not as many partitions as {settings.transactions_topic} "
                f"({transactions}); decisions stand in the partition of their transaction. Set "
                f"FLAGGER_PARTITIONS={transactions} or create {name} anew."
            )
