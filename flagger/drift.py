"""Drift: how far the transactions of now are from those that a model was judged on.

The reference is the version's `feature_sample.parquet`, real feature rows of its test window, and
the scores that the version gives them. Per feature, and for the score:

    PSI = sum over bins (p - q) ln(p / q)      population stability index; p now, q reference
    KS  = max over bin edges |P - Q|           Kolmogorov-Smirnov distance of the known values

Bins are the reference's deciles; missing (NaN) is a bin of its own for PSI, `unknown` one for
category codes. Each bin gets half a case more (Jeffreys), so that an empty one is no infinity.
Between two edges KS may be larger, by less than one bin's share: about a tenth.

Payments at night differ from those at noon, and a busy streamer's window is minutes long. So the
reference is kept by hour of the day, smoothed over the hours beside it, and a window is compared
with the mix of hours that it has itself. Few reference rows speak of a single hour, fewer at night:
PSI must exceed its limit by more than what chance does to so many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.drift_reference import (
    CODES,
    HOURS,
    MISSING,
    NAMES,
    SCORE,
    WATCHED,
    DriftReference,
    bins_of,
    count,
    hours_of,
    shares,
)
from flagger.features import CATEGORY_FIELDS

__all__ = [
    "BLOCK_ROWS",
    "NAMES",
    "SCORE",
    "WATCHED",
    "WINDOW_ROWS",
    "Alarm",
    "Distances",
    "DriftLimits",
    "DriftReference",
    "DriftWindow",
    "alarms",
]

WINDOW_ROWS = 10_000
"""Transactions that are compared at a time."""
BLOCK_ROWS = 500
"""The window moves on by so many."""
_SURE = 4.0
"""Standard errors from which on a risen share is no chance."""
_CHI_SQUARE = 33.7
"""What a chi-square of 9 degrees of freedom exceeds once in 10,000 times."""


@dataclass(frozen=True)
class Distances:
    """How far a window is from the reference; arrays are by column of `NAMES` or by field.

    Attributes:
        psi: float64 [columns].
        ks: float64 [columns].
        missing: Share of missing values now, float64 [columns].
        unknown: Share of the category `unknown` now, by `CATEGORY_FIELDS`, float64 [4].
        unknown_before: The same in the reference.
        unknown_error: Standard error of the difference of the two, by chance alone.
        chance: 1 / n + 1 / m of the rows that are compared, float64 [columns]; by chance alone,
            PSI is this times a chi-square of one degree of freedom less than there are bins.
        absent: The part of `unknown` where the field was not sent; the rest is new words.
    """

    psi: npt.NDArray[np.float64]
    ks: npt.NDArray[np.float64]
    missing: npt.NDArray[np.float64]
    unknown: npt.NDArray[np.float64]
    unknown_before: npt.NDArray[np.float64]
    unknown_error: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]
    absent: npt.NDArray[np.float64]


@dataclass(frozen=True)
class DriftLimits:
    """From where on a distance is an alarm; see docs/drift.md for how they were chosen.

    Attributes:
        psi: PSI of a feature or of the score.
        unknown_share: How far the share of `unknown` in a field may be above the reference's.
    """

    psi: float = 0.1
    unknown_share: float = 0.01


@dataclass(frozen=True)
class Alarm:
    """One thing that drifted.

    Attributes:
        kind: `feature`, `score` or `unknown`.
        name: Column, or field for `unknown`.
        value: PSI, or the share of `unknown`.
    """

    kind: str
    name: str
    value: float


def alarms(found: Distances, limits: DriftLimits) -> list[Alarm]:
    """Return what is beyond its limit, the furthest first."""
    psi_limit = limits.psi + _CHI_SQUARE * found.chance
    raised = [
        Alarm("score" if NAMES[i] == SCORE else "feature", NAMES[i], float(found.psi[i]))
        for i in np.flatnonzero(WATCHED & (found.psi > psi_limit)).tolist()
    ]
    risen = found.unknown - found.unknown_before
    more = (risen > limits.unknown_share) & (risen > _SURE * found.unknown_error)
    raised += [
        Alarm("unknown", CATEGORY_FIELDS[i], float(found.unknown[i]))
        for i in np.flatnonzero(more).tolist()
    ]
    return sorted(raised, key=lambda alarm: -alarm.value)


class DriftWindow:
    """The last transactions, in bins: a ring of blocks.

    Args:
        reference: What they are compared with.
        window_rows: Transactions that are compared; a multiple of BLOCK_ROWS.
    """

    def __init__(self, reference: DriftReference, window_rows: int = WINDOW_ROWS) -> None:
        self._reference = reference
        blocks = window_rows // BLOCK_ROWS
        self._counts = np.zeros((blocks, *reference.counts.shape[1:]), dtype=np.int64)
        self._hours = np.zeros((blocks, HOURS), dtype=np.int64)
        self._absent = np.zeros((blocks, len(CATEGORY_FIELDS)), dtype=np.int64)
        self._rows = np.empty((BLOCK_ROWS, len(NAMES)), dtype=np.float32)
        self._keys = np.empty((BLOCK_ROWS, len(CATEGORY_FIELDS)), dtype=np.uint64)
        self._waiting = 0
        self.blocks = 0

    @property
    def is_full(self) -> bool:
        """True once there are enough rows for `distances` to mean something."""
        return self.blocks >= len(self._counts)

    def add(
        self,
        rows: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        category_keys: npt.NDArray[np.uint64],
    ) -> int:
        """Take up to BLOCK_ROWS transactions; return how many: call again with the rest.

        Args:
            rows: Feature rows, float32 [n, F].
            scores: Their scores, float32 [n].
            category_keys: Keys of `CATEGORY_FIELDS`, uint64 [n, 4]; 0 is absent.
        """
        n = min(len(rows), BLOCK_ROWS - self._waiting)
        place = slice(self._waiting, self._waiting + n)
        self._rows[place, :-1], self._rows[place, -1] = rows[:n], scores[:n]
        self._keys[place] = category_keys[:n]
        self._waiting += n
        if self._waiting == BLOCK_ROWS:
            at = self.blocks % len(self._counts)
            self._counts[at] = count(bins_of(self._rows, self._reference.edges))
            self._hours[at] = np.bincount(hours_of(self._rows), minlength=HOURS)
            self._absent[at] = (self._keys == 0).sum(axis=0)
            self._waiting = 0
            self.blocks += 1
        return n

    def distances(self) -> Distances:
        """Return how far the window is from the reference now."""
        now, hours = self._counts.sum(axis=0), self._hours.sum(axis=0)
        n = max(int(hours.sum()), 1)
        p, (q, reference_rows) = shares(now), self._reference.expected(hours)
        known_p, known_q = (np.cumsum(s[:, :MISSING], axis=1) for s in (p, q))
        ks = np.abs(known_p / known_p[:, -1:] - known_q / known_q[:, -1:]).max(axis=1)
        codes = list(CODES)
        before = self._reference.counts[:, codes, 0].sum(axis=0) / self._reference.rows
        spread = before * (1 - before)
        return Distances(
            psi=((p - q) * np.log(p / q)).sum(axis=1),
            ks=ks,
            missing=now[:, MISSING] / n,
            unknown=now[codes, 0] / n,
            unknown_before=before,
            unknown_error=np.sqrt(spread * (1 / n + 1 / self._reference.rows)),
            chance=1 / n + 1 / reference_rows,
            absent=self._absent.sum(axis=0) / n,
        )
