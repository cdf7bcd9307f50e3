"""Client configuration that every Kafka client of this project shares; no client is made here."""

from __future__ import annotations

import socket
from typing import Any

from flagger.errors import ConfigurationError
from flagger.msk_iam import token_callback
from flagger.settings import Settings

__all__ = ["ConnectionTrouble", "client_config", "is_fatal", "producer_config"]

_LOG_ERRORS = 3
_FATAL = -150
"""RD_KAFKA_RESP_ERR__FATAL."""
_TRANSPORT, _AUTHENTICATION, _SSL = -195, -169, -181
"""RD_KAFKA_RESP_ERR__TRANSPORT, __AUTHENTICATION and __SSL."""
_REFUSALS = ("SSL alert", "incorrect security.protocol", "to a PLAINTEXT broker listener")
"""In transport errors only the text tells a refusal from a broker that is away: an alert after the
handshake (TLS 1.3 judges client certificates then), or TLS on one side only."""
_CONNECT_S = 1.0
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Largest message we send: a dead letter of the largest accepted message and its headers."""


def client_config(settings: Settings) -> dict[str, Any]:
    """Return what all clients need, in librdkafka's names.

    Raises:
        ConfigurationError: No broker address is set, or what the mechanism needs is missing.
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


def producer_config(settings: Settings) -> dict[str, Any]:
    """Return the configuration of an idempotent producer whose keys land where Java's would."""
    return client_config(settings) | {
        "acks": "all",
        "enable.idempotence": True,
        "partitioner": "murmur2_random",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        "compression.type": "lz4",
    }


def _security(settings: Settings) -> dict[str, Any]:
    if settings.kafka_security_protocol == "plaintext":
        return {}
    found: dict[str, Any] = {"security.protocol": settings.kafka_security_protocol}
    files = {
        "ssl.ca.location": ("FLAGGER_KAFKA_TLS_CA", settings.kafka_tls_ca),
        "ssl.certificate.location": (
            "FLAGGER_KAFKA_TLS_CERTIFICATE",
            settings.kafka_tls_certificate,
        ),
        "ssl.key.location": ("FLAGGER_KAFKA_TLS_KEY", settings.kafka_tls_key),
    }
    for name, (variable, path) in files.items():
        if path is None:
            continue
        if not path.is_file():
            raise ConfigurationError(f"{variable} names no file: {path}.")
        found[name] = str(path)
    if settings.kafka_security_protocol == "sasl_ssl":
        found |= _sasl(settings)
    return found


def _sasl(settings: Settings) -> dict[str, Any]:
    if settings.kafka_sasl_mechanism == "AWS_MSK_IAM":
        make_token = token_callback(settings.kafka_aws_region)
        return {"sasl.mechanism": "OAUTHBEARER", "oauth_cb": make_token}
    if settings.kafka_password is None:
        return {}
    return {
        "sasl.mechanism": settings.kafka_sasl_mechanism,
        "sasl.username": settings.kafka_username,
        "sasl.password": settings.kafka_password.get_secret_value(),
    }


def is_fatal(error: Any) -> bool:
    """Return True where a consumer will never deliver again; on messages `fatal()` is not set.

    Args:
        error: The client library's KafkaError.
    """
    return bool(error.fatal() or error.code() == _FATAL)


class ConnectionTrouble:
    """Remembers why the broker was not reached; a client's `error_cb`.

    The calls of the client library say "transport failure" or "timed out" only; the reason (a wrong
    password, an unknown authority) goes to its log and to this callback.

    Args:
        settings: Those of the client.

    Attributes:
        reason: The last reason, in librdkafka's words; None: none so far.
        refused: True if trying again cannot help: the broker refuses us, or we refuse it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.reason: str | None = None
        self.refused = False

    def __call__(self, error: Any) -> None:
        """Take an error of the client."""
        code, text = error.code(), error.str()
        refused = code in (_AUTHENTICATION, _SSL) or (
            code == _TRANSPORT and any(words in text for words in _REFUSALS)
        )
        if refused or (code == _TRANSPORT and not self.refused):
            self.reason = text
        self.refused = self.refused or refused

    def listens(self) -> bool:
        """Return True if a server takes connections at the first address, whatever it speaks."""
        servers = self._settings.kafka_bootstrap_servers or ""
        host, _, port = servers.split(",")[0].strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
                return True
        except (OSError, ValueError):
            return False

    def error(self) -> ConfigurationError:
        """Return the error for a client that is refused: what was tried, and what to look at."""
        settings = self._settings
        how: str = settings.kafka_security_protocol
        look_at = "FLAGGER_KAFKA_SECURITY_PROTOCOL and the listener's port"
        if how != "plaintext":
            look_at += ", FLAGGER_KAFKA_TLS_CA, and FLAGGER_KAFKA_TLS_CERTIFICATE where it asks"
            look_at += " for one"
        if how == "sasl_ssl" and settings.kafka_sasl_mechanism == "AWS_MSK_IAM":
            how += " as an AWS identity"
            look_at += ", the role's policy (kafka-cluster:Connect) and FLAGGER_KAFKA_AWS_REGION"
        elif how == "sasl_ssl":
            how += f" as user {settings.kafka_username} by {settings.kafka_sasl_mechanism}"
            look_at += ", FLAGGER_KAFKA_USERNAME, _PASSWORD and _SASL_MECHANISM"
        return ConfigurationError(
            f"No connection to Kafka at {settings.kafka_bootstrap_servers} by {how}: "
            f"{self.reason or 'it takes connections and closes them at once'}. Check {look_at}."
        )
