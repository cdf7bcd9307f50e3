"""The time budget of one request: who may use how much of it, and the clocks it is read from."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "ANSWER_SHARE",
    "CLAIM_SHARE",
    "LOG_SHARE",
    "MIN_MODEL_MS",
    "STATE_SHARE",
    "SYSTEM_CLOCK",
    "Clock",
    "Deadline",
    "Stopwatch",
]

STATE_SHARE = 0.2
"""Most of the budget that reading the entity state may take: 20 of 100 ms; it takes 0.1 ms."""
CLAIM_SHARE = 0.1
"""Most of the budget that one write of the stored decision may take: 10 of 100 ms."""
LOG_SHARE = 0.3
"""Part of the budget that the model may not touch: claim (10) and Kafka write (20 of 100 ms)."""
ANSWER_SHARE = 0.05
"""Part of the budget that the Kafka write may not touch: 5 of 100 ms to mark and to answer."""
MIN_MODEL_MS = 2.0
"""With less than this left the model is not asked: tiny deadlines only load the server."""
_LEAST_TIMEOUT_MS = 1.0


@dataclass(frozen=True)
class Clock:
    """Where the time comes from; tests pass their own.

    Attributes:
        now_ms: Wall clock, epoch milliseconds UTC.
        monotonic_s: Seconds for durations.
    """

    now_ms: Callable[[], int]
    monotonic_s: Callable[[], float]


SYSTEM_CLOCK = Clock(lambda: time.time_ns() // 1_000_000, time.perf_counter)


class Deadline:
    """One request's budget, counted from its arrival and passed down to every call.

    Args:
        budget_ms: The whole budget.
        clock: Read at once: the budget starts here.
        is_shortened: True where the caller asked for less than the usual budget.
    """

    __slots__ = ("_clock", "_start_s", "budget_ms", "is_shortened")

    def __init__(
        self, budget_ms: float, clock: Clock = SYSTEM_CLOCK, *, is_shortened: bool = False
    ) -> None:
        self.is_shortened = is_shortened
        self._clock = clock
        self._start_s = clock.monotonic_s()
        self.budget_ms = budget_ms

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return (self._clock.monotonic_s() - self._start_s) * 1000

    def left_ms(self, *, keep_share: float = 0.0) -> float:
        """Milliseconds left when `keep_share` of the budget is kept; may be negative."""
        return self.budget_ms * (1.0 - keep_share) - self.elapsed_ms

    def limit_ms(self, share: float = 1.0, *, keep_share: float = 0.0) -> float:
        """Time limit for a call that may use `share` of the budget and must leave `keep_share`.

        At least 1 ms, so that a call that only needs to be sent still is.
        """
        left_ms = self.left_ms(keep_share=keep_share)
        return max(min(self.budget_ms * share, left_ms), _LEAST_TIMEOUT_MS)


class Stopwatch:
    """Where a request's time went, stage by stage.

    Attributes:
        laps_s: Stage and seconds, in order.
    """

    __slots__ = ("_clock", "_last_s", "laps_s")

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._last_s = clock.monotonic_s()
        self.laps_s: list[tuple[str, float]] = []

    def lap(self, stage: str) -> None:
        """End a stage; the next one begins."""
        now_s = self._clock.monotonic_s()
        self.laps_s.append((stage, now_s - self._last_s))
        self._last_s = now_s

    def server_timing(self) -> str:
        """Return the laps as the value of a Server-Timing header (milliseconds)."""
        return ", ".join(f"{stage};dur={seconds * 1000:.3f}" for stage, seconds in self.laps_s)
