"""What a streamer needs before it can begin, waited for in turn: Kafka with its topics, Valkey.

In a cluster all services start at once, and after an outage a broker may come back later than its
clients. Triton is not waited for here: the pipeline does that with each batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import valkey

from flagger.errors import BrokerAwayError, ConfigurationError, StackError, StateStoreError
from flagger.settings import Settings
from flagger.state.store import StateStore
from streamer.health import Health
from streamer.topics import ensure_topics

__all__ = ["wait_for_services"]

_ATTEMPT_S = 5.0
"""An attempt to reach Kafka; in between we look whether we are to stop."""
_PAUSE_S = 0.5
_log = logging.getLogger(__name__)


def wait_for_services(
    settings: Settings,
    health: Health,
    *,
    keep_going: Callable[[], bool],
    clock_s: Callable[[], float] = time.monotonic,
) -> None:
    """Return when Kafka has the topics and Valkey answers, or `keep_going` says no.

    Args:
        settings: Addresses; `start_patience_s` is the limit for both together.
        health: Told what is waited for, and why.
        keep_going: False ends the waiting.
        clock_s: Returns monotonic time, seconds.

    Raises:
        ConfigurationError: A service refuses us, or its topics do not fit: known at once.
        StackError: A service does not answer, and the patience is at its end.
    """
    deadline_s = clock_s() + settings.start_patience_s
    needed: dict[str, Callable[[], None]] = {
        "kafka": lambda: ensure_topics(settings, timeout_s=_ATTEMPT_S),
        "valkey": lambda: _reach_valkey(settings),
    }
    for part, reach in needed.items():
        while keep_going():
            try:
                reach()
            except (BrokerAwayError, StateStoreError) as error:
                if clock_s() >= deadline_s:
                    raise StackError(
                        f"{error} The streamer has waited for it since its start, "
                        f"FLAGGER_START_PATIENCE_S={settings.start_patience_s}."
                    ) from error
                if not health.is_waiting_for(part):
                    _log.warning(
                        "%s Waiting for it, for %d s at most.", error, deadline_s - clock_s()
                    )
                health.waits(part, str(error))
                time.sleep(_PAUSE_S)
            else:
                health.goes_on(part)
                break


def _reach_valkey(settings: Settings) -> None:
    store = StateStore(settings.valkey_url or "")
    try:
        store.ping()
        if policy := store.evicts():
            raise ConfigurationError(
                f"Valkey drops records when it is full (maxmemory-policy {policy}): their "
                f"customers would count as new ones. Set `maxmemory-policy noeviction`."
            )
    except StateStoreError as error:
        if isinstance(
            error.__cause__,
            valkey.exceptions.AuthenticationError | valkey.exceptions.NoPermissionError,
        ):
            raise ConfigurationError(
                f"Valkey refuses us: {error.__cause__}. Check user and password in "
                f"FLAGGER_VALKEY_URL."
            ) from error
        raise
    finally:
        store.close()
