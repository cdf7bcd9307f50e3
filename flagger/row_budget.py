"""How many rows a second may be used for what no decision needs: drift, shadows."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["RowBudget"]


class RowBudget:
    """Lets through at most so many rows a second, and never more than a second's worth at once.

    Args:
        rows_per_s: The limit.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(self, rows_per_s: int, clock_s: Callable[[], float]) -> None:
        self._rows_per_s = rows_per_s
        self._clock_s = clock_s
        self._last_s = clock_s()
        self._allowed = 0.0

    def take(self, n: int) -> int:
        """Return how many of n rows may be used now."""
        now_s = self._clock_s()
        grown = self._allowed + (now_s - self._last_s) * self._rows_per_s
        self._allowed, self._last_s = min(grown, float(self._rows_per_s)), now_s
        taken = min(n, int(self._allowed))
        self._allowed -= taken
        return taken
