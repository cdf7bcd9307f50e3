"""Client configuration that every Kafka client of this project shares; no client is made here."""

from __future__ import annotations

from typing import Any

from flagger.errors import ConfigurationError
from flagger.settings import Settings

__all__ = ["client_config", "is_fatal", "producer_config"]

_LOG_ERRORS = 3
_FATAL = -150
"""RD_KAFKA_RESP_ERR__FATAL."""
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
        **_security(settings),
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


def _security(settings: Settings) -> dict[str, object]:
    if settings.kafka_security_protocol == "plaintext":
        return {}
    found: dict[str, object] = {"security.protocol": settings.kafka_security_protocol}
    files = {
        "ssl.ca.location": settings.kafka_tls_ca,
        "ssl.certificate.location": settings.kafka_tls_certificate,
        "ssl.key.location": settings.kafka_tls_key,
    }
    found |= {name: str(path) for name, path in files.items() if path is not None}
    if settings.kafka_security_protocol == "sasl_ssl" and settings.kafka_password is not None:
        found |= {
            "sasl.mechanism": settings.kafka_sasl_mechanism,
            "sasl.username": settings.kafka_username,
            "sasl.password": settings.kafka_password.get_secret_value(),
        }
    return found


def is_fatal(error: Any) -> bool:
    """Return True where a consumer will never deliver again; on messages `fatal()` is not set.

    Args:
        error: The client library's KafkaError.
    """
    return bool(error.fatal() or error.code() == _FATAL)
