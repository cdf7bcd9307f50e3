"""How the desk does: time to the first look and to the decision, reviews a day, precision."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, tzinfo

from sqlalchemy import Engine, func, or_, select

from review.database import transaction
from review.tables import OPEN_STATES, Case, State

__all__ = ["DayCount", "Figures", "Spread", "compute_figures"]

_DAY_MS = 86_400_000
_MAX_CASES = 20_000
"""Newest cases that the figures are computed of; more would slow the page."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 90th percentile in seconds, of `count` cases; None: there is none."""

    count: int
    median_s: float | None
    p90_s: float | None

    @classmethod
    def of(cls, values_ms: Sequence[int]) -> Spread:
        """Return the spread of durations in milliseconds."""
        if not values_ms:
            return cls(0, None, None)
        ordered = sorted(values_ms)
        p90 = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
        return cls(len(ordered), statistics.median(ordered) / 1000, p90 / 1000)


@dataclass(frozen=True, slots=True)
class DayCount:
    """What was decided on one day."""

    day: date
    confirmed: int
    dismissed: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The desk's figures over the last days.

    Attributes:
        waiting: Open cases now.
        at_risk: Sum of their expected losses.
        oldest_s: Age of the oldest that nobody has taken, seconds; None: there is none.
        first_look: From the flag to the first look of an analyst.
        decision: From the flag to the decision.
        days: What was decided on each day, oldest first, today last.
        precision: Confirmed frauds among the decided cases of the last 7 days; None: there are
            none. `precision_of` is their number.
        prevented: Sum of the amounts of the frauds confirmed in the last 7 days.
        by_analyst: Decisions of the last 7 days by who made them.
    """

    waiting: int
    at_risk: float
    oldest_s: float | None
    first_look: Spread
    decision: Spread
    days: list[DayCount]
    precision: float | None
    precision_of: int
    prevented: float
    by_analyst: dict[str, int]


def compute_figures(
    engine: Engine, clock_ms: Callable[[], int], zone: tzinfo, days: int = 14
) -> Figures:
    """Return the figures of the last `days` days, today included.

    Args:
        engine: The case store.
        clock_ms: Returns the current time, epoch milliseconds.
        zone: Whose midnights part the days.
        days: At least 7.
    """
    now_ms = clock_ms()
    since_ms = now_ms - days * _DAY_MS
    seen = (
        select(
            Case.flagged_at_ms,
            Case.first_seen_at_ms,
            Case.decided_at_ms,
            Case.decided_by,
            Case.state,
            Case.amount,
        )
        .where(or_(Case.first_seen_at_ms >= since_ms, Case.decided_at_ms >= since_ms))
        .order_by(Case.flagged_at_ms.desc())
        .limit(_MAX_CASES)
    )
    open_cases = select(func.count(), func.coalesce(func.sum(Case.expected_loss), 0.0)).where(
        Case.state.in_(OPEN_STATES)
    )
    oldest = select(func.min(Case.flagged_at_ms)).where(Case.state == State.NEW)
    with transaction(engine) as session:
        rows = session.execute(seen).all()
        waiting, at_risk = session.execute(open_cases).one()
        oldest_ms = session.scalar(oldest)
    looks = [look - flag for flag, look, *_ in rows if look is not None and look >= since_ms]
    decided = [r for r in rows if r[2] is not None and r[2] >= since_ms]
    week = [r for r in decided if (r[2] or 0) >= now_ms - 7 * _DAY_MS]
    frauds = [r for r in week if r[4] == State.CONFIRMED_FRAUD]
    return Figures(
        waiting=waiting,
        at_risk=float(at_risk),
        oldest_s=None if oldest_ms is None else (now_ms - oldest_ms) / 1000,
        first_look=Spread.of(looks),
        decision=Spread.of([(at or 0) - flag for flag, _, at, *_ in decided]),
        days=_by_day([((r[2] or 0), r[4]) for r in decided], now_ms, zone, days),
        precision=len(frauds) / len(week) if week else None,
        precision_of=len(week),
        prevented=sum(r[5] for r in frauds),
        by_analyst=dict(Counter(r[3] or "?" for r in week).most_common()),
    )


def _by_day(
    decided: Sequence[tuple[int, str]], now_ms: int, zone: tzinfo, days: int
) -> list[DayCount]:
    counts = Counter(
        (datetime.fromtimestamp(at / 1000, zone).date(), state) for at, state in decided
    )
    today = datetime.fromtimestamp(now_ms / 1000, zone).date()
    return [
        DayCount(day, counts[day, State.CONFIRMED_FRAUD], counts[day, State.DISMISSED])
        for day in (today - timedelta(days=k) for k in range(days - 1, -1, -1))
    ]
