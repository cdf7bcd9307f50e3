"""What a version was judged on, in bins: the reference of `flagger.drift`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.features import CATALOGUE, CATEGORY_FIELDS, FEATURE_NAMES, Feature

__all__ = [
    "CODES",
    "HOURS",
    "MISSING",
    "NAMES",
    "SCORE",
    "WATCHED",
    "DriftReference",
    "bins_of",
    "count",
    "hours_of",
    "shares",
]

SCORE = "score"
"""Name of the score among the features."""
NAMES = (*FEATURE_NAMES, SCORE)

_BINS = 10
MISSING = _BINS
"""Place of the bin of missing values."""
HOURS = 24
_KERNEL = 0.5 * np.eye(HOURS) + 0.25 * (
    np.roll(np.eye(HOURS), 1, 0) + np.roll(np.eye(HOURS), -1, 0)
)
"""Weights of the hour itself, and of those before and after it, around the clock."""
_HOUR = FEATURE_NAMES.index("hour_of_day")
CODES = tuple(FEATURE_NAMES.index(f"{field}_code") for field in CATEGORY_FIELDS)
_LEAN_ROWS = 2.0
"""An hour with few reference rows leans on the whole day, as if it had so many more."""


def _is_watched(feature: Feature) -> bool:
    """Return False for what drifts by nature: the clock, and all that grows as history does."""
    clock = {"hour_of_day", "is_night", "is_weekend", "hour_share"}
    age = {"days_since_first", "days_since_first_fraud", "days_since_last_fraud"}
    if feature.aggregate in clock | age | {"max_to_profile_max"}:
        return False
    if (feature.aggregate, feature.window) == ("ratio_to_max", "profile"):
        return False  # a maximum over all history only rises
    return not (feature.entity == "customer" and feature.aggregate in {"count", "visits"}) or bool(
        feature.window
    )


WATCHED = np.array([*map(_is_watched, CATALOGUE), True])
"""Which columns of `NAMES` raise alarms, bool."""


def bins_of(
    rows: npt.NDArray[np.float32], edges: Sequence[npt.NDArray[np.float32]]
) -> npt.NDArray[np.int64]:
    """Return the place of each value of float32 [n, columns] rows among the bins, int64."""
    bins = np.empty(rows.shape, dtype=np.int64)
    for column in range(rows.shape[1]):
        bins[:, column] = np.searchsorted(edges[column], rows[:, column], side="left")
    bins[np.isnan(rows)] = MISSING
    return bins


def hours_of(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the hour of the day of each row, int64 [n]."""
    return np.clip(np.nan_to_num(rows[:, _HOUR]), 0, HOURS - 1).astype(np.int64)


def count(bins: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return how many of the rows lie in each bin, int64 [columns, bins]."""
    columns = bins.shape[1]
    cells = np.arange(columns) * (_BINS + 1) + bins
    counts: npt.NDArray[np.int64] = np.bincount(cells.ravel(), minlength=columns * (_BINS + 1))
    return counts.reshape(columns, _BINS + 1)


def shares(counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return counts of bins [..., bins] as shares, each bin with half a case more."""
    more = counts + 0.5
    shares: npt.NDArray[np.float64] = more / more.sum(axis=-1, keepdims=True)
    return shares


@dataclass(frozen=True)
class DriftReference:
    """What a version was judged on, in bins.

    Attributes:
        edges: By column of `NAMES`: upper edges of all bins but the last, included, rising.
        counts: Reference rows, int64 [hours of the day, columns, bins].
    """

    edges: tuple[npt.NDArray[np.float32], ...]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> DriftReference:
        """Return the reference of feature rows, float32 [n, F], and their scores, float32 [n]."""
        table = np.column_stack([rows, scores])
        cuts = np.linspace(0, 1, _BINS + 1)[1:-1]
        edges = []
        for place, column in enumerate(table.T):
            known = column[~np.isnan(column)]
            found = np.unique(np.quantile(known, cuts, method="lower")) if len(known) else known
            if place in CODES:  # unknown stands alone
                found = np.unique(np.concatenate([np.zeros(1, found.dtype), found]))[: _BINS - 1]
            elif 0 < len(found) < len(cuts) and found[0] == known.min():
                below = np.nextafter(found[:1], -np.inf)  # else what falls below is not seen
                found = np.concatenate([below, found])
            edges.append(found.astype(np.float32))
        bins, hours = bins_of(table, edges), hours_of(table)
        return cls(tuple(edges), np.stack([count(bins[hours == h]) for h in range(HOURS)]))

    @property
    def rows(self) -> int:
        """How many rows it is made of."""
        return int(self.counts[:, 0].sum())

    def expected(
        self, hours: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return the shares of the bins, float64 [columns, bins], and how many rows say so.

        Features are smoothed over the hours beside each, so that more rows speak of it. The score
        is not: a tree may split at an hour, and the whole distribution moves a little there.

        Args:
            hours: Transactions by hour of the day, int64 [24]: the mix that is expected.

        Returns:
            The shares, and the numbers of rows, float64 [columns].
        """
        weights = hours / max(int(hours.sum()), 1)
        rows_of_hour = self.counts[:, 0].sum(axis=1)
        lean = _LEAN_ROWS * shares(self.counts.sum(axis=0))
        mixed, rows = [], []
        for kernel in (_KERNEL, np.eye(HOURS)):
            smooth = np.tensordot(kernel, self.counts, axes=1) + lean
            mixed.append(np.tensordot(weights, smooth / smooth.sum(axis=2, keepdims=True), axes=1))
            speaks = (kernel @ rows_of_hour) ** 2 / np.maximum(kernel**2 @ rows_of_hour, 1e-9)
            rows.append(1.0 / (weights**2 / np.maximum(speaks, 1.0)).sum())
        is_score = np.array(NAMES) == SCORE
        found = np.where(is_score[:, None], mixed[1], mixed[0])
        say_so = np.minimum(np.where(is_score, rows[1], rows[0]), self.rows)
        return shares(self.rows * found), say_so
