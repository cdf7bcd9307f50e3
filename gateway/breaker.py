"""A circuit breaker: a service that does not answer is left alone for a moment.

Without it, each request would wait for its share of the deadline before it is answered without the
service, and the service would be asked most while it recovers.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Breaker"]

FAILURES = 5
"""Failures in a row that open it: one slow answer is no outage."""
OPENS_AFTER_S = 0.5
"""How long they must have gone on: a moment in which this process itself gets no CPU makes all
requests under way fail together, and is no outage either."""
COOL_DOWN_S = 1.0
"""How long it stays open; then one request at a time tries the service again."""


class Breaker:
    """Closed: all may ask. Open: nobody. After the cool-down: one, whose success closes it.

    Args:
        monotonic_s: The clock.
    """

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._failures = 0
        self._first_s = 0.0
        self._try_at_s: float | None = None

    @property
    def is_open(self) -> bool:
        """True while the service counts as away."""
        return self._try_at_s is not None

    def allows(self) -> bool:
        """Return True if the service may be asked; the caller then tells how it went."""
        if self._try_at_s is None:
            return True
        now_s = self._monotonic_s()
        if now_s < self._try_at_s:
            return False
        self._try_at_s = now_s + COOL_DOWN_S  # the next try, should this one never be told of
        return True

    def succeeded(self) -> None:
        """Close it: the service answered."""
        self._failures = 0
        self._try_at_s = None

    def failed(self) -> None:
        """Count a failure: no answer, or one that says that the service cannot work."""
        now_s = self._monotonic_s()
        if self._failures == 0:
            self._first_s = now_s
        self._failures += 1
        has_lasted = now_s - self._first_s >= OPENS_AFTER_S
        if self._try_at_s is None and self._failures >= FAILURES and has_lasted:
            self._try_at_s = now_s + COOL_DOWN_S
