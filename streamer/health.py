"""What a streamer waits for, for probes and people."""

from __future__ import annotations

import time
from collections.abc import Callable

from flagger.health import STUCK_S, serve_health
from flagger.health import Health as ServiceHealth

__all__ = ["PARTS", "STUCK_S", "Health", "serve_health"]

PARTS = ("kafka", "partitions", "triton", "valkey")
"""What a streamer may wait for; `kafka` at its start."""


class Health(ServiceHealth):
    """Reasons why this streamer does not decide right now.

    Args:
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__({"partitions": "Kafka has assigned no partition yet."}, clock_s)
