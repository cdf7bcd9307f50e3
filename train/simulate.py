"""Simulated payments with fraud: the same seed gives the same transactions.

A day is made at a time, so memory does not grow with the number of days.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flagger.errors import ConfigurationError
from flagger.state.records import DAY_MS
from train.population import (
    ATM_CATEGORY,
    CATEGORIES,
    COUNTRIES,
    CURRENCIES,
    Terminals,
    make_customers,
    make_terminals,
)
from train.scenarios import Compromises, DayRows, simulate_day
from train.sources import SCHEMA

__all__ = ["CHANNELS", "SimulationConfig", "simulate", "simulate_days"]

CHANNELS = ("pos", "contactless", "ecom", "atm", "moto")
_ABSENT_SHARE = 0.02
"""Share of missing values in each categorical column."""
_CONTACTLESS_LIMIT = 50.0


@dataclass(frozen=True)
class SimulationConfig:
    """What to simulate.

    Attributes:
        customers: Number of customers; each makes about two transactions a day.
        terminals: Number of terminals; a quarter of them are web shops.
        days: Number of days.
        start: First day, UTC.
        seed: Seed of all randomness.
    """

    customers: int = 5_000
    terminals: int = 10_000
    days: int = 100
    start: date = date(2026, 1, 1)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("customers", 1), ("terminals", 2), ("days", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigurationError(
                    f"The simulation's {name} is {getattr(self, name)}; the least is {least}."
                )


def _channels(
    rows: DayRows, terminals: Terminals, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    chance = rng.random(len(rows.customer))
    near = np.where((rows.amount < _CONTACTLESS_LIMIT) & (chance < 0.7), 1, 0)
    near = np.where(terminals.category[rows.terminal] == ATM_CATEGORY, 3, near)
    return np.where(terminals.online[rows.terminal], np.where(chance < 0.05, 4, 2), near)


def _words(
    words: tuple[str, ...], indices: npt.NDArray[np.signedinteger], rng: np.random.Generator
) -> pa.Array:
    absent = rng.random(len(indices)) < _ABSENT_SHARE
    return pa.array(words, pa.string()).take(pa.array(indices, pa.int64(), mask=absent))


def _ids(prefix: str, numbers: npt.NDArray[np.int64], digits: int) -> pa.Array:
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(prefix, text, "")


def simulate_days(config: SimulationConfig) -> Iterator[tuple[pa.RecordBatch, DayRows]]:
    """Yield each day's transactions, with the rows they were made of (which tell the fraud kind).

    Days without a transaction are left out. Both are in event-time order; ids count up with it.
    """
    rng = np.random.default_rng(config.seed)
    terminals = make_terminals(config.terminals, rng)
    customers = make_customers(config.customers, terminals, rng)
    compromises = Compromises.none(config.customers, config.terminals)
    start = datetime(config.start.year, config.start.month, config.start.day, tzinfo=UTC)
    start_ms = int(start.timestamp()) * 1000
    written = 0
    for day in range(config.days):
        weekday = (start.weekday() + day) % 7
        rows = simulate_day(day, weekday, customers, terminals, compromises, rng)
        n = len(rows.customer)
        if n == 0:
            continue
        country = terminals.country[rows.terminal]
        columns = [
            _ids(f"S{config.seed}-", np.arange(written, written + n), 9),
            pa.array(start_ms + day * DAY_MS + rows.time_ms).cast(pa.timestamp("ms", "UTC")),
            _ids("C", rows.customer, 7),
            _ids("T", rows.terminal, 7),
            pa.array(rows.amount),
            _words(CURRENCIES, country, rng),
            _words(CATEGORIES, terminals.category[rows.terminal], rng),
            _words(CHANNELS, _channels(rows, terminals, rng), rng),
            _words(COUNTRIES, country, rng),
            pa.array(rows.kind > 0),
        ]
        written += n
        yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA), rows


def simulate(config: SimulationConfig) -> Iterator[pa.RecordBatch]:
    """Yield simulated transactions in event-time order, one batch a day, in `SCHEMA`."""
    for batch, _ in simulate_days(config):
        yield batch
