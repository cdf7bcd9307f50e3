"""Client configuration that every Kafka client of this project shares; no client is made here."""

from __future__ import annotations

from flagger.errors import ConfigurationError
from flagger.settings import Settings

__all__ = ["client_config", "producer_config"]

_LOG_ERRORS = 3
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest message we send: a dead letter of the largest accepted message and its headers."""


def client_config(settings: Settings) -> dict[str, object]:
    """Return what all clients need, in librdkafka's names.

    Raises:
        ConfigurationError: No broker address is set.
    """
    if settings.kafka_bootstrap_servers is None:
        raise ConfigurationError(
            "FLAGGER_KAFKA_BOOTSTRAP_SERVERS is not set and no embedded stack runs here: set it, "
            "or start one with `flagger up`."
        )
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "log.connection.close": False,
        "log_level": _LOG_ERRORS,
        # Nagle's algorithm together with delayed acknowledgements made a commit take 27 ms, not 7.
        "socket.nagle.disable": True,
    }


def producer_config(settings: Settings) -> dict[str, object]:
    """Return the configuration of an idempotent producer whose keys land where Java's would."""
    return client_config(settings) | {
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "compression.type": "lz4",
    }
