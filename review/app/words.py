"""Values as people read them."""

from __future__ import annotations

from datetime import datetime, tzinfo

from review.history import Payment
from review.tables import Case, State

__all__ = [
    "DECISION_WORDS",
    "NOT_FLAGGED",
    "STATE_WORDS",
    "duration",
    "headline_reasons",
    "moment",
    "money",
    "place",
    "state_words",
]

STATE_WORDS = {
    State.NEW: "new",
    State.CLAIMED: "claimed",
    State.ESCALATED: "escalated",
    State.CONFIRMED_FRAUD: "fraud",
    State.DISMISSED: "dismissed",
}
NOT_FLAGGED = "not flagged"
"""A payment that is no case: approved, or not decided at this moment."""
DECISION_WORDS = {"review": "Review", "decline": "Declined"}


def money(amount: float, currency: str | None = None) -> str:
    """Return an amount with its currency's code.

    >>> money(1234.5, "EUR")
    '1,234.50 EUR'
    """
    return f"{amount:,.2f}{f' {currency}' if currency else ''}"


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units at most.

    >>> duration(59.4), duration(3_725), duration(None)
    ('59 s', '1 h 2 min', '-')
    """
    if seconds is None:
        return "-"
    rest = max(0, round(seconds))
    if rest < 60:
        return f"{rest} s"
    minutes, hours, days = rest // 60, rest // 3_600, rest // 86_400
    if hours == 0:
        return f"{minutes} min"
    if days == 0:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def moment(at_ms: int, zone: tzinfo) -> str:
    """Return a time in a zone, to the second."""
    return datetime.fromtimestamp(at_ms / 1000, zone).strftime("%d %b %Y, %H:%M:%S")


def place(case: Case | Payment) -> str:
    """Return channel, country and merchant category, those that are known."""
    parts = (case.channel, case.country, case.merchant_category)
    return " · ".join(part for part in parts if part) or "unknown"


def state_words(case: Case, now_ms: int) -> str:
    """Return a case's state with who holds or has decided it.

    A claim that has run out counts as free, also before somebody has noticed.
    """
    if case.state == State.CLAIMED:
        if (case.claimed_until_ms or 0) <= now_ms:
            return "escalated" if case.escalated_by else "new"
        return f"claimed · {case.claimed_by}"
    if case.state == State.ESCALATED:
        return f"escalated · {case.escalated_by}"
    if case.decided_by:
        return f"{STATE_WORDS[State(case.state)]} · {case.decided_by}"
    return STATE_WORDS[State(case.state)]


def headline_reasons(case: Case) -> str:
    """Return the reasons in one line, the model's before the policy's own."""
    pairs = list(zip(case.reason_codes, case.reasons, strict=False))
    told = [text for code, text in pairs if code != "score"] or [text for _, text in pairs]
    return "; ".join(told)
