"""An in-memory table of entity records.

Open addressing from key to row; rows are dense. The kernels index `records` by row; a row number
stays valid until the next `evict`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.state.records import CUSTOMER, NEW_BUCKET, STATE_VERSION, TERMINAL

__all__ = [
    "BLANK_CUSTOMER",
    "BLANK_TERMINAL",
    "EntityTable",
    "RowView",
    "copied_view",
    "find_row",
]

RowView = tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.int32]]
"""What the kernels read and move: records, a dirty flag for each, and the row of each key."""

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
def _find_rows(
    index: npt.NDArray[np.int32], records: Any, keys: npt.NDArray[np.uint64]
) -> npt.NDArray[np.int32]:
    """Return each key's row, -1 where there is none."""
    rows = np.empty(keys.shape[0], dtype=np.int32)
    for i in range(keys.shape[0]):
        rows[i] = find_row(index, records, keys[i])
    return rows


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


BLANK_CUSTOMER, BLANK_TERMINAL = _blank_record(CUSTOMER), _blank_record(TERMINAL)
"""A record without history and without a key, shape [1]."""


class EntityTable:
    """Records of one kind of entity, found by key.

    Attributes:
        records: Structured array; rows `[0, len(self))` are in use.
        dirty: uint8 per row; 1 where the record changed since it was last written to the store.

    Args:
        dtype: CUSTOMER or TERMINAL.
        initial_rows: Room to begin with. It costs memory only as it is used, growing beyond it
            copies everything.
    """

    def __init__(self, dtype: np.dtype[Any], *, initial_rows: int = _INITIAL_ROWS) -> None:
        self.records: npt.NDArray[Any] = np.zeros(initial_rows, dtype=dtype)
        self.dirty: npt.NDArray[np.uint8] = np.zeros(initial_rows, dtype=np.uint8)
        self._used: npt.NDArray[np.uint32] = np.zeros(initial_rows, dtype=np.uint32)
        self._clock = 0
        self._blank = BLANK_CUSTOMER if dtype == CUSTOMER else BLANK_TERMINAL
        self._index = np.full(1 << (2 * initial_rows).bit_length(), _EMPTY, dtype=np.int32)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def nbytes(self) -> int:
        """Memory in use, in bytes."""
        per_row = self.records.itemsize + self.dirty.itemsize + self._used.itemsize
        return self._count * per_row + self._index.nbytes

    def rows_of(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        """Return the row of each key, int32 [n]; unknown keys get a blank record."""
        self._reserve(len(keys))
        rows = np.empty(len(keys), dtype=np.int32)
        self._count = _rows_of(self._index, self.records, self._count, self._blank, keys, rows)
        self._clock += 1
        self._used[rows] = self._clock
        return rows

    def view(self, keys: npt.NDArray[np.uint64]) -> RowView:
        """Return the table and the row of each key; unknown keys get a blank record."""
        rows = self.rows_of(keys)  # first: it may move the records
        return self.records, self.dirty, rows

    def touch(self, keys: npt.NDArray[np.uint64]) -> None:
        """Take note that these keys are in use; `evict` takes others first."""
        rows = _find_rows(self._index, self.records, keys)
        self._clock += 1
        self._used[rows[rows >= 0]] = self._clock

    def missing(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Return the distinct keys that have no record here."""
        return np.unique(keys[_find_rows(self._index, self.records, keys) < 0])

    def get(self, key: int) -> npt.NDArray[Any] | None:
        """Return a copy of one record, shape [1], or None."""
        row = find_row(self._index, self.records, np.uint64(key))
        return None if row < 0 else self.records[row : row + 1].copy()

    def load(self, records: npt.NDArray[Any]) -> None:
        """Add or overwrite records that were read from the store; they are clean."""
        rows = self.rows_of(np.ascontiguousarray(records["key"]))
        self.records[rows] = records
        self.dirty[rows] = 0

    def dirty_rows(self) -> npt.NDArray[np.intp]:
        """Return the rows of the records that changed since they were last taken."""
        return np.flatnonzero(self.dirty[: self._count])

    def take(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
        """Return copies of the records in these rows and mark them clean."""
        self.dirty[rows] = 0
        return self.records[rows]

    def take_dirty(self) -> npt.NDArray[Any]:
        """Return copies of all records that changed since they were last taken; now clean."""
        return self.take(self.dirty_rows())

    def count_dirty(self) -> int:
        """Return how many records have changed since they were last taken."""
        return int(np.count_nonzero(self.dirty[: self._count]))

    def mark_all_dirty(self) -> None:
        """Have `dirty_rows` return every record, also those taken before."""
        self.dirty[: self._count] = 1

    def evict(self, n: int) -> int:
        """Drop up to n clean records, the least recently used ones; return how many.

        They must be in the store: the next use loads them from there.
        """
        clean = np.flatnonzero(self.dirty[: self._count] == 0)
        n = min(n, len(clean))
        if n == 0:
            return 0
        oldest = clean[np.argpartition(self._used[clean], n - 1)[:n]]
        stays = np.ones(self._count, dtype=np.bool_)
        stays[oldest] = False
        count = self._count - n
        holes = np.flatnonzero(~stays[:count])
        movers = count + np.flatnonzero(stays[count:])  # the last ones fill the holes
        for array in (self.records, self.dirty, self._used):
            array[holes] = array[movers]
        self.dirty[count : self._count] = 0
        self._count = count
        self._index.fill(_EMPTY)
        _reindex(self._index, self.records, count)
        return n

    def _reserve(self, extra: int) -> None:
        needed = self._count + extra
        if needed > len(self.records):
            capacity = max(needed, len(self.records) * 3 // 2)
            self.records = _grown(self.records, capacity)
            self.dirty = _grown(self.dirty, capacity)
            self._used = _grown(self._used, capacity)
        if 2 * needed > len(self._index):
            size = 1 << (2 * needed).bit_length()
            self._index = np.full(size, _EMPTY, dtype=np.int32)
            _reindex(self._index, self.records, self._count)


def _grown(array: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    grown = np.zeros(capacity, dtype=array.dtype)
    grown[: len(array)] = array
    return grown


def copied_view(
    blank: npt.NDArray[Any], records: npt.NDArray[Any], keys: npt.NDArray[np.uint64]
) -> RowView:
    """Return copies of the records of these keys, as `EntityTable.view` would of a table of them.

    Args:
        blank: For keys without a record: BLANK_CUSTOMER or BLANK_TERMINAL.
        records: Those that exist, of the same kind.
        keys: uint64 [n].
    """
    places: dict[int, int] = {}
    rows = np.array([places.setdefault(key, len(places)) for key in keys.tolist()], dtype=np.int32)
    # As bytes: numpy copies records field by field, which takes longer than all the rest.
    size = blank.itemsize
    copies = bytearray(blank.tobytes() * len(places))
    for key, record in zip(records["key"].tolist(), records, strict=True):
        if key in places:
            copies[places[key] * size : (places[key] + 1) * size] = record.tobytes()
    found = np.frombuffer(copies, dtype=blank.dtype)
    found["key"] = list(places)
    return found, np.zeros(len(places), dtype=np.uint8), rows
