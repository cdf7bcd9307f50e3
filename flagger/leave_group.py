"""Closing a consumer that is a member of a group, without waiting for ever.

The client library hangs in `close` when a rebalance comes up at the wrong moment: the callback's
`assign`, which the library itself makes where we make none, is never answered (librdkafka#4884).
All work is committed by then, so a process that ends need not wait for it.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import Any, Protocol

__all__ = ["LEAVE_S", "leave_group"]

LEAVE_S = 20.0
"""How long leaving may take: longer than the callback that hands partitions over, whose commit ends
or fails within 12 s, and shorter than the minute after which Kubernetes kills."""

_log = logging.getLogger(__name__)


class Member(Protocol):
    """A consumer of the client library; `flagger` does not import that."""

    def close(self) -> Any:
        """Leave the group."""


def leave_group(consumer: Member) -> None:
    """Close the consumer; its revoke callback runs first, in another thread.

    What a callback raises is raised here. After `LEAVE_S` the consumer is given up: the
    group moves its partitions when its session ends, or when it comes back.
    """
    closed: Future[None] = Future()

    def close() -> None:
        try:
            consumer.close()
        except BaseException as error:
            closed.set_exception(error)
        else:
            closed.set_result(None)

    # A daemon: the interpreter does not join it, hung or not.
    threading.Thread(target=close, name="leave group", daemon=True).start()
    try:
        closed.result(LEAVE_S)
    except TimeoutError:
        if closed.done():  # a callback raised it
            raise
        _log.warning(
            "Kafka's client library did not leave the consumer group within %g s "
            "(librdkafka#4884). All that was done is committed; this process ends without it.",
            LEAVE_S,
        )
