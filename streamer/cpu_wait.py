"""How long the streamer waits for a core, of the time that it wants one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["CpuWait", "read_schedstat"]

_SCHEDSTAT = Path("/proc/thread-self/schedstat")
_EVERY_S = 0.25
_NEW_SHARE = 0.3
"""Weight of the newest quarter of a second: what it says is of the last second or so."""


def read_schedstat() -> tuple[int, int]:
    """Return nanoseconds that this thread has run, and has waited for a core; zeros: not known.

    Linux counts both for each thread (its documentation: scheduler/sched-stats).
    """
    try:
        ran_ns, waited_ns, _ = map(int, _SCHEDSTAT.read_text().split())
    except (OSError, ValueError):
        return 0, 0
    return ran_ns, waited_ns


class CpuWait:
    """Share of the time in which a thread was ready to run and had no core, smoothed.

    With a core of its own that is near 0. At 0.5 it waits as long as it runs: whatever it saves
    now, others on this machine can use at once.

    Args:
        read: See `read_schedstat`; of the thread that calls `share`.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        read: Callable[[], tuple[int, int]] = read_schedstat,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock_s = clock_s
        self._last: tuple[int, int] | None = None
        self._next_s = 0.0
        self._share = 0.0

    @property
    def share(self) -> float:
        """The share, 0 to 1; 0 where the system does not tell."""
        now_s = self._clock_s()
        if now_s >= self._next_s:
            self._next_s = now_s + _EVERY_S
            found = self._read()
            if self._last is not None:
                ran_ns, waited_ns = found[0] - self._last[0], found[1] - self._last[1]
                newest = waited_ns / max(ran_ns + waited_ns, 1)
                self._share += _NEW_SHARE * (newest - self._share)
            self._last = found
        return self._share
