"""Feature rows of windows: one replay of a table, the scorable rows of each window kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flagger.errors import DataError
from flagger.features import DUPLICATE, FEATURE_NAMES, FeatureContract
from flagger.state.records import DAY_MS
from train.replay import Replay
from train.sources import to_batch

__all__ = ["JudgedWindow", "WindowRows", "replay_windows", "require_both_outcomes"]

_CHUNK_ROWS = 65_536
_AMOUNT = FEATURE_NAMES.index("amount")


class JudgedWindow(Protocol):
    """What measures and thresholds need to know of a window with n transactions."""

    @property
    def is_fraud(self) -> npt.NDArray[np.bool_]:
        """Outcomes, bool [n]."""

    @property
    def amounts(self) -> npt.NDArray[np.float32]:
        """Amounts in the file's currency, float32 [n]."""

    @property
    def customers(self) -> npt.NDArray[Any]:
        """Customer ids, object [n]."""

    @property
    def days(self) -> npt.NDArray[np.int64]:
        """Days since 1970, int64 [n]."""

    @property
    def day_count(self) -> int:
        """Days on which there are transactions."""


@dataclass(frozen=True)
class WindowRows:
    """The scorable transactions of one window.

    Attributes:
        rows: Feature rows, float32 [n, F].
        is_fraud: Outcomes, bool [n].
        customers: Customer ids, object [n].
        days: Days since 1970, int64 [n].
        place: Place of each in the sorted table, int64 [n].
    """

    rows: npt.NDArray[np.float32]
    is_fraud: npt.NDArray[np.bool_]
    customers: npt.NDArray[Any]
    days: npt.NDArray[np.int64]
    place: npt.NDArray[np.int64]

    @property
    def amounts(self) -> npt.NDArray[np.float32]:
        """Amounts in the file's currency, float32 [n]."""
        amounts: npt.NDArray[np.float32] = self.rows[:, _AMOUNT]
        return amounts

    @property
    def day_count(self) -> int:
        """Days on which there are transactions."""
        return len(np.unique(self.days))


def replay_windows(
    table: pa.Table, masks: Mapping[str, npt.NDArray[np.bool_]], contract: FeatureContract
) -> tuple[dict[str, WindowRows], int]:
    """Replay the table and keep the rows of the windows that have an outcome and are no repeat.

    Args:
        table: Transactions in `SCHEMA`, ordered by time.
        masks: Which of them lie in a window, bool [n] by the window's name.
        contract: Vocabularies and label delay.

    Returns:
        The windows by name, and the number of repeated transactions in the table.
    """
    history = Replay(contract)
    kept: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in masks}
    places: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in masks}
    start = duplicates = 0
    for chunk in table.to_batches(max_chunksize=_CHUNK_ROWS):
        labelled = chunk.column("is_fraud").is_valid().to_numpy(zero_copy_only=False)
        outcomes = pc.fill_null(chunk.column("is_fraud"), False).to_numpy(zero_copy_only=False)
        result = history.advance(to_batch(chunk), outcomes)
        duplicate = result.flags & DUPLICATE != 0
        duplicates += int(duplicate.sum())
        for name, mask in masks.items():
            chosen = np.flatnonzero(mask[start : start + len(chunk)] & labelled & ~duplicate)
            kept[name].append(result.rows[chosen])
            places[name].append(chosen + start)
        start += len(chunk)
    windows = {}
    for name in masks:
        place = np.concatenate(places[name])
        part = table.select(["customer_id", "event_time", "is_fraud"]).take(place)
        windows[name] = WindowRows(
            rows=np.concatenate(kept[name]),
            is_fraud=part["is_fraud"].to_numpy(),
            customers=part["customer_id"].to_numpy(),
            days=part["event_time"].cast(pa.int64()).to_numpy() // DAY_MS,
            place=place,
        )
    return windows, duplicates


def require_both_outcomes(name: str, outcomes: npt.NDArray[np.bool_], file: Path) -> None:
    """Raise DataError if a window lacks frauds or genuine transactions."""
    frauds = int(outcomes.sum())
    if not 0 < frauds < len(outcomes):
        raise DataError(
            file=str(file),
            column="is_fraud",
            problem=f"the {name} window has {len(outcomes):,} labelled transactions, {frauds:,} of "
            f"them fraud, and both kinds are needed",
            remedy="Choose longer windows or give more data",
        )
