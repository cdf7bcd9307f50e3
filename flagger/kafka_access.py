"""The first question to Kafka: does it take us as the settings say?

The calls of the client library wait for a broker that refuses them as they do for one that is away.
Who asks here first ends at once, with the reason, instead of waiting for ever. The core makes no
client: doors bring the library's `AdminClient` and `KafkaException`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from flagger.errors import BrokerAwayError, ConfigurationError
from flagger.kafka import ConnectionTrouble, client_config
from flagger.settings import Settings

__all__ = ["connect", "require_access"]

_ATTEMPT_S = 1.0
"""After so long we look why there is no answer yet: a refusal need not wait for the rest."""
_SILENCE_S = 3.0
_FIRST_ANSWER_S = 4.0
"""Longer than `_SILENCE_S`, after which a hang-up without a word counts as a refusal."""


class Admin(Protocol):
    """What is asked of the library's client."""

    def list_topics(self, *, timeout: float) -> Any:
        """Return the cluster's metadata."""

    def poll(self, timeout: float) -> int:
        """Serve the callbacks."""


AnyAdmin = TypeVar("AnyAdmin", bound=Admin)


def require_access(
    settings: Settings, make: Callable[[dict[str, Any]], Admin], failure: type[Exception]
) -> None:
    """Raise ConfigurationError if Kafka refuses us; one that is away is for the caller to wait for.

    Takes milliseconds where the broker answers, 4 s where it does not.
    """
    with suppress(BrokerAwayError):
        connect(settings, make, failure, _FIRST_ANSWER_S)


def connect(
    settings: Settings,
    make: Callable[[dict[str, Any]], AnyAdmin],
    failure: type[Exception],
    timeout_s: float,
) -> tuple[AnyAdmin, dict[str, Any]]:
    """Return a client and the topics that the broker tells it of.

    Args:
        settings: Where Kafka is, and as whom we come.
        make: The client library's `AdminClient`.
        failure: Its `KafkaException`.
        timeout_s: How long a broker may be away.

    Raises:
        ConfigurationError: The client refuses the settings, or the broker us; known at once.
        BrokerAwayError: No answer.
    """
    trouble = ConnectionTrouble(settings)
    start_s = time.monotonic()
    # What goes wrong stands in the error; its log would say it twenty times a second.
    told = {"error_cb": trouble, "log_level": 0}
    try:
        admin = make(client_config(settings) | told)
    except failure as error:
        raise ConfigurationError(f"Kafka's client refuses the settings: {error}.") from error
    while True:
        try:
            return admin, admin.list_topics(timeout=_ATTEMPT_S).topics
        except failure as error:
            admin.poll(0)  # serves the callback
            waited_s = time.monotonic() - start_s
            # Some hang up without a word where the protocol is wrong; a broker that starts does not
            # listen yet.
            silent = trouble.reason is None and waited_s > _SILENCE_S
            if trouble.refused or (silent and trouble.listens()):
                raise trouble.error() from error
            if waited_s > timeout_s:
                raise BrokerAwayError(
                    f"Kafka at {settings.kafka_bootstrap_servers} does not answer: "
                    f"{trouble.reason or error}. Check the address and the broker."
                ) from error
