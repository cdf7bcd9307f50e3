"""Counts by day that grow as decisions and labels come, to judge days once they are mature.

The rules are those of `train.matured`: young days and days without any label are not judged, an
unlabelled transaction of a judged day was genuine, the latest label of a transaction counts. But
only flagged transactions are remembered, about one in a hundred: a labelled fraud that is not
among them was not flagged. So, unlike there, a fraud counts as missed also if it was never decided
here, and all versions count together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flagger.policy import DECLINE
from flagger.state.records import DAY_MS
from train.matured import Totals

__all__ = ["MAX_HELD_KEYS", "Judged", "MaturingDays"]

MAX_HELD_KEYS = 10_000_000
"""Most flagged and labelled transactions that are remembered: about 1 GB. A rate of 1,000 a second
flags 860,000 a day at 1 %."""


@dataclass
class _Day:
    """One day so far.

    Attributes:
        decisions: How many.
        flagged: Key of each flagged transaction -> was it declined.
        labels: Key of each labelled transaction -> is it fraud.
    """

    decisions: int = 0
    flagged: dict[int, bool] = field(default_factory=dict)
    labels: dict[int, bool] = field(default_factory=dict)

    def totals(self) -> Totals:
        frauds = [key for key, is_fraud in self.labels.items() if is_fraud]
        caught = [self.flagged[key] for key in frauds if key in self.flagged]
        return Totals(
            decisions=self.decisions,
            flagged=len(self.flagged),
            declined=sum(self.flagged.values()),
            labelled=len(self.labels),
            frauds=len(frauds),
            caught=len(caught),
            declined_frauds=sum(caught),
        )


@dataclass(frozen=True)
class Judged:
    """What can be said now.

    Attributes:
        totals: Sums of the judged days.
        days: How many are judged.
        unlabelled_days: Old enough to be judged, but no label has reached them.
        newest_day: The newest judged one, days since 1970; None: there is none.
    """

    totals: Totals
    days: int
    unlabelled_days: int
    newest_day: int | None


class MaturingDays:
    """Days of decisions and labels, the oldest forgotten.

    Args:
        maturity_days: A day is judged once the newest decision is so many days younger.
        window_days: So many mature days are judged.
        on_forgotten: Called with a day that is given up before its time, since `max_keys` are held.
        max_keys: Most flagged and labelled transactions that are remembered.

    Attributes:
        held_keys: How many are.
    """

    def __init__(
        self,
        maturity_days: int,
        window_days: int,
        *,
        on_forgotten: Callable[[int], None] = lambda _day: None,
        max_keys: int = MAX_HELD_KEYS,
    ) -> None:
        self.held_keys = 0
        self._maturity_days = maturity_days
        self._kept_days = maturity_days + window_days
        self._on_forgotten = on_forgotten
        self._max_keys = max_keys
        self._days: dict[int, _Day] = {}
        self._newest = -1
        self._oldest = -1  # days before are over, or given up

    def decide(self, key: int, event_time_ms: int, code: int, *, is_flagged: bool) -> None:
        """Take a decision.

        Args:
            key: Key of the transaction's id.
            event_time_ms: When it was, epoch milliseconds.
            code: Decision code of `flagger.policy`.
            is_flagged: Review or decline.
        """
        number = event_time_ms // DAY_MS
        day = self._day(number)
        if day is None:
            return
        day.decisions += 1
        if is_flagged:
            self._hold(day.flagged, key, code == DECLINE)
        if number > self._newest:
            self._newest = number
            self._forget_before(number - self._kept_days + 1)

    def label(self, key: int, event_time_ms: int, *, is_fraud: bool) -> None:
        """Take a label; `event_time_ms` is that of the transaction."""
        day = self._day(event_time_ms // DAY_MS)
        if day is not None:
            self._hold(day.labels, key, is_fraud)

    def judged(self) -> Judged:
        """Judge the mature days."""
        found: list[Totals] = []
        unlabelled = 0
        newest_day = None
        for number in sorted(self._days):
            day = self._days[number]
            if not day.decisions or self._newest - number < self._maturity_days:
                continue
            if day.labels:
                found.append(day.totals())
                newest_day = number
            else:
                unlabelled += 1
        names = Totals.__dataclass_fields__
        sums = Totals(**{name: sum(getattr(part, name) for part in found) for name in names})
        return Judged(sums, len(found), unlabelled, newest_day)

    def _day(self, number: int) -> _Day | None:
        return None if number < self._oldest else self._days.setdefault(number, _Day())

    def _hold(self, held: dict[int, bool], key: int, value: bool) -> None:
        self.held_keys += key not in held
        held[key] = value
        while self.held_keys > self._max_keys:
            oldest = min(self._days)
            self._on_forgotten(oldest)
            self._forget_before(oldest + 1)

    def _forget_before(self, number: int) -> None:
        self._oldest = max(self._oldest, number)
        for old in [n for n in self._days if n < self._oldest]:
            day = self._days.pop(old)
            self.held_keys -= len(day.flagged) + len(day.labels)
