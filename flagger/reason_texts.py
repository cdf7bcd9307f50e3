"""The words of the reasons: topic and text of a feature, from its declaration and its value."""

from __future__ import annotations

import math
from collections.abc import Callable

from flagger.features.batch import CATEGORY_FIELDS
from flagger.features.catalogue import Feature

__all__ = ["text_of", "topic_of"]

_WINDOWS = {
    "1h": "in the last hour",
    "1d": "in a day",
    "24h": "in the last 24 hours",
    "7d": "in the last 7 days",
    "14d": "in the last 14 days",
    "30d": "in the last 30 days",
    "profile": "before the last 14 days",
    "": "so far",
}
_TERMINAL_WINDOWS = {"1d": "in one day", "7d": "in 7 days", "30d": "in 30 days"}
_AMOUNT_HISTORY = ("sum", "mean", "max")
_AMOUNT_COMPARED = (
    "ratio_to_mean",
    "ratio_to_max",
    "max_to_profile_max",
    "mean_to_profile_mean",
    "zscore",
)


def topic_of(feature: Feature) -> str:
    """Return the topic of a feature: the code of the reasons it gives."""
    if feature.entity == "terminal":
        return "terminal_activity" if feature.aggregate == "count" else "terminal_fraud"
    if feature.value in CATEGORY_FIELDS:
        return feature.value
    if feature.value == "terminal":
        return "new_terminal"
    if feature.aggregate in ("hour_of_day", "is_night", "is_weekend", "hour_share"):
        return "time_of_day"
    if feature.aggregate == "amount":
        return "amount"
    if feature.aggregate in _AMOUNT_COMPARED:
        return "unusual_amount"
    if feature.aggregate in _AMOUNT_HISTORY:
        return "spending"
    if feature.aggregate == "days_since_first" or feature.name == "customer_count":
        return "customer_history"
    return "velocity"


def text_of(
    feature: Feature, value: float, word: str | None = None, label_delay_days: int = 7
) -> str:
    """Return one line on what a feature says of a transaction.

    Args:
        feature: Its declaration.
        value: Its value; NaN: it cannot be known.
        word: The category behind a code; None: unknown in training.
        label_delay_days: How late fraud at terminals is known, days.

    >>> text_of(Feature("customer", "count", window="1h"), 5.0)
    '5 earlier transactions of the customer in the last hour'
    """
    if feature.entity == "terminal":
        return _terminal_text(feature, value, label_delay_days)
    if feature.entity == "transaction":
        return _transaction_text(feature, value, word)
    if feature.aggregate == "is_new":
        return _novelty_text(feature.value, value)
    if math.isnan(value):
        return _no_history_text(feature)
    return _CUSTOMER_TEXTS[feature.aggregate](value, _WINDOWS[feature.window])


def _transaction_text(feature: Feature, value: float, word: str | None) -> str:
    if feature.aggregate == "code":
        return f"{_field(feature.value)} {word or 'unknown in training'}"
    if feature.aggregate == "hour_of_day":
        minutes = int(value * 60)
        return f"at {minutes // 60:02d}:{minutes % 60:02d} UTC"
    if feature.aggregate == "is_night":
        return "at night (0:00 to 6:00 UTC)" if value else "by day (after 6:00 UTC)"
    if feature.aggregate == "is_weekend":
        return "at the weekend" if value else "on a weekday"
    return f"amount {_money(value)}"


def _novelty_text(what: str, value: float) -> str:
    if math.isnan(value):
        return f"first transaction of the customer, so no known {_field(what)}"
    if value:
        return f"{_field(what)} not used by the customer before"
    return f"{_field(what)} used by the customer before"


def _no_history_text(feature: Feature) -> str:
    if feature.window == "profile" or "profile" in feature.aggregate:
        return "no spending of the customer older than 14 days to compare with"
    if feature.window:
        return f"no transactions of the customer {_WINDOWS[feature.window]} to compare with"
    if feature.aggregate == "zscore":
        return "too few transactions of the customer to compare the amount with"
    return "first transaction of the customer"


def _terminal_text(feature: Feature, value: float, delay_days: int) -> str:
    """Terminals' values are those that were known `delay_days` before; days count from there."""
    if feature.aggregate.startswith("days_since"):
        which = "first" if feature.aggregate == "days_since_first_fraud" else "latest"
        if math.isnan(value):
            return f"no confirmed fraud at the terminal{' in 30 days' if which == 'latest' else ''}"
        days = round(value) + delay_days
        return f"{which} confirmed fraud at the terminal about {_count(days, 'day')} ago"
    known = f"as known {_count(delay_days, 'day')} ago" if delay_days else "as known now"
    where = f"at the terminal {_TERMINAL_WINDOWS[feature.window]}, {known}"
    if math.isnan(value):
        return f"no transactions {where}"
    if feature.aggregate == "count":
        return f"{_count(value, 'transaction')} {where}"
    if feature.aggregate == "fraud_count":
        return f"{_count(value, 'confirmed fraud')} {where}"
    return f"{value:.1%} confirmed fraud {where}"


_CUSTOMER_TEXTS: dict[str, Callable[[float, str], str]] = {
    "count": lambda v, w: f"{_count(v, 'earlier transaction')} of the customer {w}",
    "sum": lambda v, w: f"the customer spent {_money(v)} {w}",
    "mean": lambda v, w: f"the customer's mean amount {w} is {_money(v)}",
    "max": lambda v, w: f"the customer's largest amount {w} is {_money(v)}",
    "ratio_to_mean": lambda v, w: f"amount {_times(v)} the customer's mean {w}",
    "ratio_to_max": lambda v, w: f"amount {_times(v)} the customer's largest {w}",
    "max_to_profile_max": lambda v, w: (
        f"largest amount {w} is {_times(v)} the customer's earlier largest"
    ),
    "mean_to_profile_mean": lambda v, w: (
        f"mean amount {w} is {_times(v)} the customer's earlier mean"
    ),
    "zscore": lambda v, _: (
        f"amount {abs(v):.1f} standard deviations {'above' if v >= 0 else 'below'} the customer's "
        f"mean"
    ),
    "rate_to_30d": lambda v, w: f"{_times(v)} the customer's usual pace {w}",
    "seconds_since_last": lambda v, _: f"{_duration(v)} after the customer's last transaction",
    "days_since_first": lambda v, _: f"{_days(v)} after the customer's first transaction",
    "hour_share": lambda v, _: f"{v:.0%} of the customer's transactions are at this time of day",
    "visits": lambda v, _: f"{_count(v, 'recent visit')} of the customer to the terminal",
}
"""Text by aggregate, of the value and the words for the window."""


def _field(name: str) -> str:
    return name.replace("_", " ")


def _money(value: float) -> str:
    return f"{value:,.2f}"


def _times(value: float) -> str:
    return f"{value:.2f} times" if value < 10 else f"{value:,.0f} times"


def _count(value: float, noun: str) -> str:
    n = round(value)
    return f"no {noun}s" if n == 0 else f"{n:,} {noun}{'' if n == 1 else 's'}"


def _days(value: float) -> str:
    return "less than a day" if value < 1 else _count(math.floor(value), "day")


def _duration(seconds: float) -> str:
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if seconds >= size:
            return _count(math.floor(seconds / size), unit)
    return _count(seconds, "second")
