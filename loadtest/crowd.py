"""A stream of transactions that touches very many customers and terminals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flagger.state.records import DAY_MS
from train.population import CATEGORIES, COUNTRIES, CURRENCIES
from train.simulate import CHANNELS
from train.sources import SCHEMA

__all__ = ["Crowd"]

_START_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1000
_CHUNK_ROWS = 50_000


class Crowd:
    """Transactions of many customers: first one of each, then of customers at random.

    The simulator of the training data knows where people live and shop, which takes minutes for a
    million of them; here only the number of records matters.

    Args:
        customers: How many.
        terminals: How many, at most as many as customers.
        seed: Of all randomness.
    """

    def __init__(self, *, customers: int, terminals: int, seed: int) -> None:
        self._customers = customers
        self._terminals = terminals
        self._rng = np.random.default_rng(seed)
        self._made = 0

    def first(self) -> Iterator[pa.RecordBatch]:
        """Yield one transaction of each customer, over one day; each terminal occurs too."""
        customers = self._rng.permutation(self._customers)
        terminals = self._rng.permutation(self._customers) % self._terminals
        times_ms = _START_MS + np.arange(self._customers) * DAY_MS // self._customers
        for start in range(0, self._customers, _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            yield self._batch(customers[part], terminals[part], times_ms[part])

    def steady(self, per_s: float, wanted: Callable[[], bool]) -> Iterator[pa.RecordBatch]:
        """Yield transactions in batches of a second, event time as fast as the clock."""
        n = max(1, int(per_s))
        for second in itertools.takewhile(lambda _: wanted(), itertools.count()):
            times_ms = _START_MS + DAY_MS + second * 1_000 + np.arange(n) * 1_000 // n
            yield self._batch(
                self._rng.integers(0, self._customers, n),
                self._rng.integers(0, self._terminals, n),
                times_ms,
            )

    def _batch(
        self,
        customer: npt.NDArray[np.int64],
        terminal: npt.NDArray[np.int64],
        times_ms: npt.NDArray[np.int64],
    ) -> pa.RecordBatch:
        n = len(customer)
        rng = self._rng
        country = rng.integers(0, len(COUNTRIES), n)
        columns = [
            _ids("R", np.arange(self._made, self._made + n)),
            pa.array(times_ms).cast(pa.timestamp("ms", "UTC")),
            _ids("C", customer),
            _ids("T", terminal),
            pa.array(np.round(rng.lognormal(np.log(35.0), 0.8, n) + 0.01, 2)),
            pa.array(CURRENCIES).take(pa.array(country)),
            pa.array(CATEGORIES).take(pa.array(rng.integers(0, len(CATEGORIES), n))),
            pa.array(CHANNELS).take(pa.array(rng.integers(0, len(CHANNELS), n))),
            pa.array(COUNTRIES).take(pa.array(country)),
            pa.nulls(n, pa.bool_()),
        ]
        self._made += n
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def _ids(prefix: str, numbers: npt.NDArray[np.int64]) -> pa.Array:
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 9, "0")
    return pc.binary_join_element_wise(prefix, text, "")
