"""An in-memory table of entity records.

Open addressing from key to row; rows dense in order of arrival. The kernels index
`records` by row; a row number stays valid for the table's life.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.state.records import CUSTOMER, NEW_BUCKET, STATE_VERSION, TERMINAL

__all__ = ["EntityTable", "find_row"]

_INITIAL_ROWS = 1_024
_EMPTY = -1


@kernel
def find_row(index: npt.NDArray[np.int32], records: Any, key: np.uint64) -> int:
    """Return the row of `key`, or -1."""
    mask = np.uint64(index.shape[0] - 1)
    i = key & mask
    while True:
        row = index[i]
        if row == -1:
            return -1
        if records[row].key == key:
            return int(row)
        i = (i + np.uint64(1)) & mask


@kernel
def _insert_row(index: npt.NDArray[np.int32], key: np.uint64, row: int) -> None:
    mask = np.uint64(index.shape[0] - 1)
    i = key & mask
    while index[i] != -1:
        i = (i + np.uint64(1)) & mask
    index[i] = row


@kernel
def _reindex(index: npt.NDArray[np.int32], records: Any, count: int) -> None:
    for row in range(count):
        _insert_row(index, records[row].key, row)


@kernel
def _rows_of(
    index: npt.NDArray[np.int32],
    records: Any,
    count: int,
    blank: Any,
    keys: npt.NDArray[np.uint64],
    rows: npt.NDArray[np.int32],
) -> int:
    """Fill `rows` with each key's row, blank where it is new; return the new count."""
    for i in range(keys.shape[0]):
        row = find_row(index, records, keys[i])
        if row < 0:
            row = count
            records[row] = blank[0]
            records[row].key = keys[i]
            _insert_row(index, keys[i], row)
            count += 1
        rows[i] = row
    return count


@kernel
def _missing(
    index: npt.NDArray[np.int32], records: Any, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.bool_]:
    missing = np.zeros(keys.shape[0], dtype=np.bool_)
    for i in range(keys.shape[0]):
        missing[i] = find_row(index, records, keys[i]) < 0
    return missing


def _blank_record(dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    blank = np.zeros(1, dtype=dtype)
    blank["version"] = STATE_VERSION
    if dtype == CUSTOMER:
        blank["partition"] = -1
        for ring in ("five_minute", "hour", "day"):
            blank[f"{ring}_head"] = NEW_BUCKET
    elif dtype == TERMINAL:
        blank["head"] = NEW_BUCKET
        blank["first_fraud_bucket"] = NEW_BUCKET
    return blank


class EntityTable:
    """Records of one kind of entity, found by key.

    Attributes:
        records: Structured array; rows `[0, len(self))` are in use.
        dirty: uint8 per row; 1 where the record changed since it was last written to the store.
    """

    def __init__(self, dtype: np.dtype[Any], *, initial_rows: int = _INITIAL_ROWS) -> None:
        self.records: npt.NDArray[Any] = np.zeros(initial_rows, dtype=dtype)
        self.dirty: npt.NDArray[np.uint8] = np.zeros(initial_rows, dtype=np.uint8)
        self._blank = _blank_record(dtype)
        self._index = np.full(1 << (2 * initial_rows).bit_length(), _EMPTY, dtype=np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.records.nbytes + self.dirty.nbytes + self._index.nbytes

    def rows_of(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Return the row of each key, int32 [n]; unknown keys get a blank record."""
        self._reserve(len(keys))
        rows = np.empty(len(keys), dtype=np.int32)
        self._count = _rows_of(self._index, self.records, self._count, self._blank, keys, rows)
        return rows

    def missing(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Return the distinct keys that have no record here."""
        return np.unique(keys[_missing(self._index, self.records, keys)])

    def get(self, key: int) -> npt.NDArray[Any] | None:
        """Return a copy of one record, shape [1], or None."""
        row = find_row(self._index, self.records, np.uint64(key))
        return None if row < 0 else self.records[row : row + 1].copy()

    def load(self, records: npt.NDArray[Any]) -> None:
        """Add or overwrite records that were read from the store; they are clean."""
        rows = self.rows_of(np.ascontiguousarray(records["key"]))
        self.records[rows] = records
        self.dirty[rows] = 0

    def take_dirty(self) -> npt.NDArray[Any]:
        """Return copies of the records that changed since the last call and mark them clean."""
        rows = np.flatnonzero(self.dirty[: self._count])
        self.dirty[rows] = 0
        return self.records[rows]

    def mark_all_dirty(self) -> None:
        """Have `take_dirty` return every record, also those taken before."""
        self.dirty[: self._count] = 1

    def _reserve(self, extra: int) -> None:
        needed = self._count + extra
        if needed > len(self.records):
            capacity = max(needed, len(self.records) * 3 // 2)
            self.records = _grown(self.records, capacity)
            self.dirty = _grown(self.dirty, capacity)
        if 2 * needed > len(self._index):
            size = 1 << (2 * needed).bit_length()
            self._index = np.full(size, _EMPTY, dtype=np.int32)
            _reindex(self._index, self.records, self._count)


def _grown(array: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    grown = np.zeros(capacity, dtype=array.dtype)
    grown[: len(array)] = array
    return grown
