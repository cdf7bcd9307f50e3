"""What the desk shows: the queue, a case's surroundings, cases like it. Reads only."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Engine, and_, func, or_, select

from review.database import transaction
from review.tables import OPEN_STATES, Case, Event, State

__all__ = ["RECENT_DAYS", "CaseQueries", "Filter", "Order", "Page", "Similar", "likeness"]

MAX_PAGE = 200
"""Most cases of one page of the queue."""
HISTORY = 50
"""Most earlier flags that are shown of a customer or a terminal."""
RECENT_DAYS = 30
"""How far the views `decided` and `all` go back, by the flag; ids are found however old."""
_CANDIDATES = 400
"""Newest decided cases that are compared with a case."""
_SIMILAR_DAYS = 180
_DAY_MS = 86_400_000

View = Literal["open", "mine", "escalated", "decided", "all"]
Order = Literal["expected_loss", "newest"]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which cases; empty tuples and None do not narrow.

    Attributes:
        view: `open`: all that wait; `mine`: those that `analyst` holds; and so on. `decided` and
            `all` go RECENT_DAYS back.
        analyst: Whose, for `mine`.
        decisions: review, decline.
        channels: Channels; "unknown" stands for none.
        countries: Countries, likewise.
        min_amount: Least amount, in units of the transaction's currency.
        text: Begins a transaction, customer or terminal id.
    """

    view: View = "open"
    analyst: str = ""
    decisions: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    countries: tuple[str, ...] = ()
    min_amount: float | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the queue, and the totals of all that the filter lets through."""

    cases: list[Case]
    count: int
    amount: float
    expected_loss: float


@dataclass(frozen=True, slots=True)
class Similar:
    """A decided case like another one; `likeness` is 0 to 1."""

    case: Case
    likeness: float


class CaseQueries:
    """Reads the case store.

    Args:
        engine: The case store.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(self, engine: Engine, clock_ms: Callable[[], int]) -> None:
        self._engine = engine
        self._clock_ms = clock_ms

    def page(self, which: Filter, order: Order = "expected_loss", limit: int = 50) -> Page:
        """Return the first cases of the queue.

        Args:
            which: The filter.
            order: The costliest first, or the newest flag.
            limit: At most MAX_PAGE.
        """
        conditions = self._conditions(which)
        by = [Case.expected_loss.desc()] if order == "expected_loss" else []
        statement = (
            select(Case)
            .where(*conditions)
            .order_by(*by, Case.flagged_at_ms.desc(), Case.transaction_id)
            .limit(min(limit, MAX_PAGE))
        )
        sums = select(
            func.count(),
            func.coalesce(func.sum(Case.amount), 0.0),
            func.coalesce(func.sum(Case.expected_loss), 0.0),
        ).where(*conditions)
        with transaction(self._engine) as session:
            cases = list(session.scalars(statement))
            count, amount, loss = session.execute(sums).one()
        return Page(cases, count, float(amount), float(loss))

    def find(self, transaction_id: str) -> Case | None:
        """Return one case, or None."""
        with transaction(self._engine) as session:
            return session.get(Case, transaction_id)

    def find_all(self, ids: Sequence[str]) -> list[Case]:
        """Return the cases that are there, in the order of the ids; at most MAX_PAGE."""
        with transaction(self._engine) as session:
            found = session.scalars(select(Case).where(Case.transaction_id.in_(ids[:MAX_PAGE])))
            by_id = {case.transaction_id: case for case in found}
        return [by_id[i] for i in ids if i in by_id]

    def events(self, transaction_id: str) -> list[Event]:
        """Return what happened to a case, the newest first."""
        mine = select(Event).where(Event.transaction_id == transaction_id)
        with transaction(self._engine) as session:
            return list(session.scalars(mine.order_by(Event.id.desc())))

    def history(self, case: Case, of: Literal["customer", "terminal"]) -> list[Case]:
        """Return the newest other flags of a case's customer or terminal."""
        column = Case.customer_id if of == "customer" else Case.terminal_id
        value = case.customer_id if of == "customer" else case.terminal_id
        others = select(Case).where(column == value, Case.transaction_id != case.transaction_id)
        with transaction(self._engine) as session:
            newest = others.order_by(Case.event_time_ms.desc()).limit(HISTORY)
            return list(session.scalars(newest))

    def similar(self, case: Case, limit: int = 8) -> list[Similar]:
        """Return the decided cases most like this one, the likest first; see `likeness`.

        Compared are the newest decided ones of 180 days that share its terminal, channel, country
        or merchant category.
        """
        shared = [Case.terminal_id == case.terminal_id]
        for column, value in (
            (Case.channel, case.channel),
            (Case.country, case.country),
            (Case.merchant_category, case.merchant_category),
        ):
            if value is not None:
                shared.append(column == value)
        statement = (
            select(Case)
            .where(
                Case.decided_at_ms > self._clock_ms() - _SIMILAR_DAYS * _DAY_MS,
                Case.transaction_id != case.transaction_id,
                or_(*shared),
            )
            .order_by(Case.decided_at_ms.desc())
            .limit(_CANDIDATES)
        )
        with transaction(self._engine) as session:
            candidates = list(session.scalars(statement))
        found = [Similar(other, likeness(case, other)) for other in candidates]
        found.sort(key=lambda similar: -similar.likeness)
        return found[:limit]

    def choices(self) -> tuple[list[str], list[str]]:
        """Return the channels and countries that occur, "unknown" for none."""
        with transaction(self._engine) as session:
            channels, countries = (
                sorted(value or "unknown" for value in session.scalars(select(column).distinct()))
                for column in (Case.channel, Case.country)
            )
        return channels, countries

    def _conditions(self, which: Filter) -> list[ColumnElement[bool]]:
        now_ms = self._clock_ms()
        running = Case.claimed_until_ms > now_ms
        views: dict[View, ColumnElement[bool] | None] = {
            "open": Case.state.in_(OPEN_STATES),
            "mine": and_(Case.state == State.CLAIMED, Case.claimed_by == which.analyst, running),
            "escalated": and_(Case.escalated_by.is_not(None), Case.state.in_(OPEN_STATES)),
            "decided": Case.decided_at_ms.is_not(None),
            "all": None,
        }
        view = views[which.view]
        found = [] if view is None else [view]
        if which.view in ("decided", "all") and not which.text:
            found.append(Case.flagged_at_ms > now_ms - RECENT_DAYS * _DAY_MS)
        if which.decisions:
            found.append(Case.decision.in_(which.decisions))
        if which.channels:
            found.append(func.coalesce(Case.channel, "unknown").in_(which.channels))
        if which.countries:
            found.append(func.coalesce(Case.country, "unknown").in_(which.countries))
        if which.min_amount is not None:
            found.append(Case.amount >= which.min_amount)
        if which.text:
            found.append(
                or_(
                    Case.transaction_id.startswith(which.text, autoescape=True),
                    Case.customer_id.startswith(which.text, autoescape=True),
                    Case.terminal_id.startswith(which.text, autoescape=True),
                )
            )
        return found


def likeness(one: Case, other: Case) -> float:
    """Return how alike two cases are, 0 to 1.

    Half of it are shared reasons (the Jaccard index of their codes, without the policy's own), a
    quarter is the place (terminal, else merchant category, country and channel in equal parts), a
    quarter the amount: exp(-|ln(a / b)|), the smaller one's share of the larger.
    """
    mine, theirs = (set(case.reason_codes) - {"score"} for case in (one, other))
    reasons = len(mine & theirs) / len(mine | theirs) if mine | theirs else 0.0
    pairs = (
        (one.merchant_category, other.merchant_category),
        (one.country, other.country),
        (one.channel, other.channel),
    )
    place = sum(a is not None and a == b for a, b in pairs) / len(pairs)
    if one.terminal_id == other.terminal_id:
        place = 1.0
    amount = math.exp(-abs(math.log(max(one.amount, 0.01) / max(other.amount, 0.01))))
    return 0.5 * reasons + 0.25 * place + 0.25 * amount
