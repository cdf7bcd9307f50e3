"""What happens on one simulated day: genuine purchases, and the five kinds of fraud.

The first three kinds follow the simulator of the Fraud Detection Handbook (Le Borgne et al.,
https://fraud-detection-handbook.github.io): large amounts, compromised terminals for 28 days,
compromised cards for 14 days. Card testing and account takeover are ours. Genuine customers
travel, make large purchases and buy small things in bursts too, so that no single rule tells
fraud from life.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from flagger.state.records import DAY_MS, HOUR_MS
from train.population import AMOUNT_FACTORS, Customers, Terminals

__all__ = ["FRAUD_KINDS", "Compromises", "DayRows", "simulate_day"]

FRAUD_KINDS = (
    "genuine",
    "large_amount",
    "compromised_terminal",
    "compromised_card",
    "card_testing",
    "account_takeover",
)
"""Names of `DayRows.kind`."""
_LARGE, _TERMINAL, _CARD, _TESTING, _TAKEOVER = range(1, 6)

_LARGE_SHARE = 0.0005
_TERMINALS_PER_DAY = 0.00015
_TERMINAL_DAYS = 28
_TERMINAL_FRAUD_SHARE = 0.9
_CARDS_PER_DAY = 0.0005
_CARD_DAYS = 14
_TESTED_CARDS_PER_DAY = 0.0003
_TAKEOVERS_PER_DAY = 0.0003
_TRAVELLER_SHARE = 0.012
_GENUINE_BURSTS_PER_DAY = 0.002
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class DayRows:
    """Transactions of one day, columns of n rows.

    Attributes:
        customer: Index of the customer, int64.
        terminal: Index of the terminal, int64.
        time_ms: Milliseconds since the day's start, int64, below one day.
        amount: Amount rounded to cents, float64.
        kind: Index into `FRAUD_KINDS`, int8.
    """

    customer: npt.NDArray[np.int64]
    terminal: npt.NDArray[np.int64]
    time_ms: npt.NDArray[np.int64]
    amount: npt.NDArray[np.float64]
    kind: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Compromises:
    """Until which day (exclusive) terminals and cards are in a criminal's hands; moved daily."""

    terminal_until: npt.NDArray[np.int64]
    card_until: npt.NDArray[np.int64]

    @classmethod
    def none(cls, customers: int, terminals: int) -> Compromises:
        """Return the state in which nothing is compromised yet."""
        return cls(np.zeros(terminals, dtype=np.int64), np.zeros(customers, dtype=np.int64))

    def begin(self, day: int, rng: np.random.Generator) -> None:
        """Compromise some more terminals and cards from this day on."""
        for until, share, days in (
            (self.terminal_until, _TERMINALS_PER_DAY, _TERMINAL_DAYS),
            (self.card_until, _CARDS_PER_DAY, _CARD_DAYS),
        ):
            until[rng.random(len(until)) < share] = day + days


def _rows(
    customer: npt.NDArray[np.int64],
    terminal: npt.NDArray[np.int64],
    time_ms: npt.NDArray[np.float64],
    amount: npt.NDArray[np.float64],
    kind: int,
) -> DayRows:
    return DayRows(
        customer=customer,
        terminal=terminal,
        time_ms=time_ms.astype(np.int64) % DAY_MS,
        amount=np.round(amount, 2),
        kind=np.full(len(customer), kind, dtype=np.int8),
    )


def _genuine(
    customers: Customers, terminals: Terminals, weekday: int, rng: np.random.Generator
) -> DayRows:
    factor = 1.15 if weekday >= 4 else 0.94
    counts = rng.poisson(customers.rate_per_day * factor)
    customer = np.repeat(np.arange(len(counts)), counts)
    n = len(customer)
    # Squaring a uniform number makes the first places of a list the usual ones.
    near = (customers.reachable_count[customer] * rng.random(n) ** 2).astype(np.int64)
    terminal = customers.reachable[customer, near]
    travels = (rng.random(len(counts)) < _TRAVELLER_SHARE)[customer]
    physical = np.flatnonzero(~terminals.online)
    terminal[travels] = physical[rng.integers(0, len(physical), travels.sum())]
    online = rng.random(n) < customers.online_share[customer]
    favourite = (customers.favourites.shape[1] * rng.random(n) ** 2).astype(np.int64)
    terminal[online] = customers.favourites[customer, favourite][online]
    browsing = online & (rng.random(n) < 0.15)
    shops = np.flatnonzero(terminals.online)
    terminal[browsing] = shops[rng.integers(0, len(shops), browsing.sum())]
    hour = rng.normal(customers.active_hour[customer], 3.2)
    anytime = online & (rng.random(n) < 0.3)
    hour[anytime] = rng.uniform(0.0, 24.0, anytime.sum())
    amount = customers.mean_amount[customer] * AMOUNT_FACTORS[terminals.category[terminal]]
    amount = amount * rng.lognormal(-0.08, 0.4, n)
    amount *= np.where(rng.random(n) < 0.004, rng.uniform(2.0, 6.0, n), 1.0)
    return _rows(customer, terminal, hour % 24.0 * HOUR_MS, np.maximum(amount, 0.5), 0)


def _burst(
    chosen: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    terminals: Terminals,
    kind: int,
    rng: np.random.Generator,
) -> DayRows:
    """Several amounts below 3 in web shops within ten minutes, for each chosen customer."""
    customer = np.repeat(chosen, sizes)
    start = np.repeat(rng.uniform(0.0, DAY_MS - HOUR_MS, len(chosen)), sizes)
    shops = np.flatnonzero(terminals.online)
    n = len(customer)
    terminal = shops[rng.integers(0, len(shops), n)]
    amount = rng.uniform(0.0, 3.0, n) * (rng.random(n) > 0.15)  # 0: an account verification
    return _rows(customer, terminal, start + rng.uniform(0, 10 * _MINUTE_MS, n), amount, kind)


def _card_testing(customers: Customers, terminals: Terminals, rng: np.random.Generator) -> DayRows:
    chosen = np.flatnonzero(rng.random(len(customers.country)) < _TESTED_CARDS_PER_DAY)
    small = _burst(chosen, rng.integers(3, 7, len(chosen)), terminals, _TESTING, rng)
    shops = np.flatnonzero(terminals.online)
    last = np.zeros(len(customers.country))
    np.maximum.at(last, small.customer, small.time_ms)
    large = _rows(
        chosen,
        shops[rng.integers(0, len(shops), len(chosen))],
        last[chosen] + rng.uniform(_MINUTE_MS, 30 * _MINUTE_MS, len(chosen)),
        customers.mean_amount[chosen] * rng.uniform(4.0, 12.0, len(chosen)),
        _TESTING,
    )
    return _join([small, large])


def _takeover(customers: Customers, terminals: Terminals, rng: np.random.Generator) -> DayRows:
    """Purchases in other countries within four hours, where the customer has never been."""
    chosen = np.flatnonzero(rng.random(len(customers.country)) < _TAKEOVERS_PER_DAY)
    customer = np.repeat(chosen, rng.integers(3, 9, len(chosen)))
    n = len(customer)
    terminal = rng.integers(0, len(terminals.country), n)
    for _ in range(4):  # try again where the country is the home country; some stay, as in life
        same = terminals.country[terminal] == customers.country[customer]
        terminal[same] = rng.integers(0, len(terminals.country), same.sum())
    amount = customers.mean_amount[customer] * rng.uniform(1.0, 6.0, n)
    start = rng.uniform(0.0, DAY_MS - 4 * HOUR_MS, len(customers.country))[customer]
    return _rows(customer, terminal, start + rng.uniform(0, 4 * HOUR_MS, n), amount, _TAKEOVER)


def _mark(
    rows: DayRows,
    day: int,
    compromises: Compromises,
    customers: Customers,
    rng: np.random.Generator,
) -> None:
    """Turn some of the genuine rows into fraud, in place."""
    n = len(rows.customer)
    chance = rng.random(n)
    at_terminal = compromises.terminal_until[rows.terminal] > day
    rows.kind[at_terminal & (chance < _TERMINAL_FRAUD_SHARE)] = _TERMINAL
    by_card = (compromises.card_until[rows.customer] > day) & (chance < 1 / 3)
    rows.kind[by_card] = _CARD
    rows.amount[by_card] = np.round(rows.amount[by_card] * 5.0, 2)
    large = (rng.random(n) < _LARGE_SHARE) & (rows.kind == 0)
    rows.kind[large] = _LARGE
    mean = customers.mean_amount[rows.customer[large]]
    rows.amount[large] = np.round(mean * rng.uniform(5.0, 12.0, large.sum()), 2)


def _join(parts: list[DayRows]) -> DayRows:
    names = [field.name for field in fields(DayRows)]
    return DayRows(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def simulate_day(
    day: int,
    weekday: int,
    customers: Customers,
    terminals: Terminals,
    compromises: Compromises,
    rng: np.random.Generator,
) -> DayRows:
    """Return one day's transactions in the order of their times (stable).

    Args:
        day: Number of the day since the simulation's start.
        weekday: 0 is Monday.
        customers: The customers.
        terminals: The terminals.
        compromises: Moved to this day.
        rng: Source of all randomness.
    """
    compromises.begin(day, rng)
    genuine = _genuine(customers, terminals, weekday, rng)
    _mark(genuine, day, compromises, customers, rng)
    buyers = np.flatnonzero(rng.random(len(customers.country)) < _GENUINE_BURSTS_PER_DAY)
    rows = _join(
        [
            genuine,
            _burst(buyers, rng.integers(2, 5, len(buyers)), terminals, 0, rng),
            _card_testing(customers, terminals, rng),
            _takeover(customers, terminals, rng),
        ]
    )
    order = np.argsort(rows.time_ms, kind="stable")
    return DayRows(*(getattr(rows, field.name)[order] for field in fields(DayRows)))
