"""What waits for one message: an alert, or the counts of ten thousand, in bounded memory."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from flagger.alert import Alert
from review.alerts.rules import SEVERITIES, Severity

__all__ = ["MAX_DISTINCT", "MAX_TIMED", "Digest"]

MAX_DISTINCT = 1_000
"""Most values counted of each kind; what comes on top is counted as `others`."""
MAX_TIMED = 1_000_000
"""Most alerts whose delivery time is measured, 8 bytes each; later ones are only counted."""
_KINDS = ("decision", "channel", "country", "terminal_id", "reason_code")


@dataclass(slots=True)
class Digest:
    """Alerts gathered for one message.

    Attributes:
        named: Most alerts to keep whole: those of the largest amounts.
        count: How many.
        severity: The highest of them.
        amounts: Sum by currency ("" where none was given).
        counts: Kind (`decision`, `channel`, `country`, `terminal_id`, `reason_code`) -> value ->
            how many.
        first_ms: Oldest event time, epoch milliseconds.
        last_ms: Newest event time.
        stamps_ms: When their transactions' messages were written, epoch milliseconds, int64.
    """

    named: int = 10
    count: int = 0
    severity: Severity = "info"
    amounts: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=lambda: {k: Counter() for k in _KINDS})
    first_ms: int = 2**62
    last_ms: int = 0
    stamps_ms: array[int] = field(default_factory=lambda: array("q"))
    _largest: list[tuple[float, int, Alert]] = field(default_factory=list)

    def add(self, alert: Alert, severity: Severity, stamp_ms: int) -> None:
        """Count one alert."""
        self.count += 1
        self._raise_to(severity)
        _count(self.amounts, alert.currency or "", alert.amount)
        for kind in ("decision", "channel", "country", "terminal_id"):
            _count(self.counts[kind], getattr(alert, kind) or "unknown", 1)
        for code in set(alert.reason_codes):
            _count(self.counts["reason_code"], code, 1)
        self.first_ms = min(self.first_ms, alert.event_time)
        self.last_ms = max(self.last_ms, alert.event_time)
        if len(self.stamps_ms) < MAX_TIMED:
            self.stamps_ms.append(stamp_ms)
        self._keep((alert.amount, -self.count, alert))

    def merge(self, other: Self) -> None:
        """Count what another digest has counted."""
        for entry in other._largest:
            self._keep((entry[0], entry[1] - self.count, entry[2]))
        self.count += other.count
        self._raise_to(other.severity)
        for mine, theirs in (
            (self.amounts, other.amounts),
            *((self.counts[kind], other.counts[kind]) for kind in _KINDS),
        ):
            for value, number in theirs.items():
                _count(mine, value, number)
        self.first_ms = min(self.first_ms, other.first_ms)
        self.last_ms = max(self.last_ms, other.last_ms)
        self.stamps_ms.extend(other.stamps_ms[: MAX_TIMED - len(self.stamps_ms)])

    @property
    def largest(self) -> list[Alert]:
        """Up to `named` alerts, the largest amount first; of equal ones the earlier."""
        return [alert for _, _, alert in sorted(self._largest, key=lambda e: e[:2], reverse=True)]

    def _raise_to(self, severity: Severity) -> None:
        if SEVERITIES.index(severity) > SEVERITIES.index(self.severity):
            self.severity = severity

    def _keep(self, entry: tuple[float, int, Alert]) -> None:
        # The number makes entries differ, so that alerts themselves are never compared.
        if len(self._largest) < self.named:
            heapq.heappush(self._largest, entry)
        elif entry[:2] > self._largest[0][:2]:
            heapq.heapreplace(self._largest, entry)


def _count(counter: Counter[str], value: str, number: float) -> None:
    if value not in counter and len(counter) >= MAX_DISTINCT:
        value = "others"
    counter[value] += number  # type: ignore[assignment]  # amounts are sums
