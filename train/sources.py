"""Files of transactions: Parquet or CSV, streamed in chunks with one canonical schema."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pyarrow.lib import ArrowException

from flagger.errors import ConfigurationError, DataError
from flagger.features.batch import CATEGORY_FIELDS, TransactionBatch
from flagger.features.hashing import hash_spans
from train.cells import (
    CellContext,
    TimeUnit,
    to_amounts,
    to_categories,
    to_event_times,
    to_ids,
    to_labels,
)

__all__ = ["SCHEMA", "ColumnMap", "read_sorted", "read_transactions", "to_batch"]

_ID_FIELDS = ("transaction_id", "customer_id", "terminal_id")
SCHEMA = pa.schema(
    [
        pa.field("transaction_id", pa.string(), nullable=False),
        pa.field("event_time", pa.timestamp("ms", "UTC"), nullable=False),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("terminal_id", pa.string(), nullable=False),
        pa.field("amount", pa.float64(), nullable=False),
        *(pa.field(name, pa.string()) for name in CATEGORY_FIELDS),
        pa.field("is_fraud", pa.bool_()),
    ]
)
"""The columns of every batch that `read_transactions` and `simulate` yield."""

_CSV_BLOCK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class ColumnMap:
    """How a file's layout differs from `SCHEMA`.

    Attributes:
        columns: Column name in the file, by field of `SCHEMA`; fields left out keep their name.
        zone: Zone of event times that name none, for example `Europe/Paris`; None: refuse them.
        unit: Unit of event times that are whole numbers: `s`, `ms` or `us`.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    zone: str | None = None
    unit: TimeUnit = "ms"

    def __post_init__(self) -> None:
        unknown = sorted(set(self.columns) - set(SCHEMA.names))
        if unknown:
            raise ConfigurationError(
                f"The column map names the fields {unknown}; the fields are {SCHEMA.names}."
            )
        if self.unit not in get_args(TimeUnit):
            raise ConfigurationError(
                f"The column map's unit is {self.unit!r}; write one of {get_args(TimeUnit)}."
            )
        if self.zone is not None:
            _require_zone(self.zone)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a column map from TOML: `[columns]`, and optionally `[event_time]`.

        Raises:
            ConfigurationError: Not readable, or with names that mean nothing here.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"Cannot read the column map {path}: {error}.") from error
        columns, times = data.pop("columns", {}), data.pop("event_time", {})
        if data or not isinstance(columns, dict) or not isinstance(times, dict):
            raise ConfigurationError(
                f"The column map {path} may have the tables [columns] and [event_time] only; "
                f"found {sorted(data) or 'a value in their place'}."
            )
        if set(times) - {"zone", "unit"}:
            raise ConfigurationError(
                f"[event_time] in {path} may have zone and unit; found {sorted(times)}."
            )
        return cls({name: str(value) for name, value in columns.items()}, **times)

    def name_of(self, field_name: str) -> str:
        """Return what the file calls a field."""
        return self.columns.get(field_name, field_name)


def _require_zone(zone: object) -> None:
    moment = pa.array([0], pa.timestamp("ms"))
    try:
        pc.assume_timezone(moment, zone)
    except (ArrowException, TypeError) as error:
        raise ConfigurationError(
            f"The column map's zone is {zone!r}, which is no time zone; write for example "
            f"Europe/Paris or UTC."
        ) from error


def _is_csv(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in (".csv", ".parquet"):
        return suffixes[-1] == ".csv"
    raise DataError(
        file=str(path),
        problem="its name ends neither in .parquet nor in .csv (or .csv.gz)",
        remedy="Only these two kinds of files are read",
    )


def _present_columns(found: list[str], path: Path, columns: ColumnMap) -> dict[str, str]:
    """Return the file's column by field, for those that it has; required ones must be there."""
    present = {}
    for schema_field in SCHEMA:
        name = columns.name_of(schema_field.name)
        if found.count(name) == 1:
            present[schema_field.name] = name
        elif found.count(name) > 1 or not schema_field.nullable or name != schema_field.name:
            problem = "the column is there twice" if name in found else "the column is missing"
            raise DataError(
                file=str(path),
                column=name,
                problem=f"{problem}; the file has {', '.join(found) or 'no columns'}",
                remedy=f"Name the column that holds {schema_field.name} with --columns map.toml",
            )
    return present


def _raw_batches(
    path: Path, columns: ColumnMap, chunk_rows: int, row_groups: Sequence[int] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the file's batches with our field names, values as the file has them."""
    if not _is_csv(path):
        with pq.ParquetFile(path) as file:
            present = _present_columns(file.schema_arrow.names, path, columns)
            names = list(present.values())
            for batch in file.iter_batches(chunk_rows, row_groups=row_groups, columns=names):
                arrays = [batch.column(name) for name in present.values()]
                yield pa.RecordBatch.from_arrays(arrays, names=list(present))
        return
    # A reader for the header alone: the types of the columns must be known before the first block.
    with pa.csv.open_csv(path, pa.csv.ReadOptions(use_threads=False)) as header:
        present = _present_columns(header.schema.names, path, columns)
    options = pa.csv.ConvertOptions(
        include_columns=list(present.values()),
        column_types=dict.fromkeys(present.values(), pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    reading = pa.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES)
    with pa.csv.open_csv(path, reading, convert_options=options) as reader:
        for block in reader:
            for start in range(0, block.num_rows, chunk_rows):
                arrays = block.slice(start, chunk_rows).columns
                yield pa.RecordBatch.from_arrays(arrays, names=list(present))


def _canonical(
    raw: pa.RecordBatch, path: Path, columns: ColumnMap, first_row: int
) -> pa.RecordBatch:
    arrays = []
    for name in SCHEMA.names:
        if name not in raw.schema.names:
            arrays.append(pa.nulls(raw.num_rows, SCHEMA.field(name).type))
            continue
        array: Any = raw.column(name)
        context = CellContext(str(path), columns.name_of(name), first_row)
        if name == "event_time":
            arrays.append(to_event_times(array, context, zone=columns.zone, unit=columns.unit))
        elif name == "amount":
            arrays.append(to_amounts(array, context))
        elif name == "is_fraud":
            arrays.append(to_labels(array, context))
        else:
            convert = to_ids if name in _ID_FIELDS else to_categories
            arrays.append(convert(array, context))
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def read_transactions(
    path: Path,
    columns: ColumnMap | None = None,
    *,
    chunk_rows: int = 65_536,
    row_groups: Sequence[int] | None = None,
    first_row: int = 1,
) -> Iterator[pa.RecordBatch]:
    """Yield a file's transactions in the file's order, in `SCHEMA`.

    Args:
        path: A .parquet, .csv or .csv.gz file.
        columns: How its layout differs; None: not at all.
        chunk_rows: Most rows of one batch.
        row_groups: Of a .parquet file, the row groups to read; None: all. CSV has none.
        first_row: Number of the first row that is read, from 1, for errors.

    Raises:
        DataError: The file, a column or a cell cannot be used; names file, row and value.
    """
    columns = columns or ColumnMap()
    try:
        for raw in _raw_batches(path, columns, chunk_rows, row_groups):
            if raw.num_rows:
                yield _canonical(raw, path, columns, first_row)
                first_row += raw.num_rows
    except (ArrowException, OSError) as error:
        raise DataError(
            file=str(path),
            problem=f"cannot be read ({' '.join(str(error).split())})",
            remedy="Check the file's name and that it is whole",
        ) from error


def read_sorted(path: Path, columns: ColumnMap | None = None) -> pa.Table:
    """Return a whole file in memory, ordered by event time; equal times keep the file's order.

    Takes about 100 bytes a row. Raises DataError as `read_transactions`, and if there are no rows.
    """
    table = pa.Table.from_batches(read_transactions(path, columns), schema=SCHEMA)
    if table.num_rows == 0:
        raise DataError(file=str(path), problem="has no rows", remedy="Give a file with data")
    times = table["event_time"].cast(pa.int64()).to_numpy()
    if np.all(times[1:] >= times[:-1]):
        return table
    return table.take(np.argsort(times, kind="stable"))


def _keys(array: pa.Array, *, empty_is_absent: bool) -> npt.NDArray[np.uint64]:
    """Hash a `string` array straight from its buffers; nulls are absent (0)."""
    _, offsets_buffer, data_buffer = array.buffers()
    n = len(array)
    if n == 0 or data_buffer is None or array.null_count == n:
        return np.zeros(n, dtype=np.uint64)
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[array.offset : array.offset + n + 1]
    starts = offsets[:-1].astype(np.int64)
    ends = offsets[1:].astype(np.int64)
    if array.null_count:
        starts[array.is_null().to_numpy(zero_copy_only=False)] = -1
    if empty_is_absent:
        starts[starts == ends] = -1
    return hash_spans(np.frombuffer(data_buffer, dtype=np.uint8), starts, ends)


def to_batch(record_batch: pa.RecordBatch) -> TransactionBatch:
    """Return the columns that the feature engine takes from a batch in `SCHEMA`."""
    ids = [_keys(record_batch.column(name), empty_is_absent=False) for name in _ID_FIELDS]
    categories = [_keys(record_batch.column(n), empty_is_absent=True) for n in CATEGORY_FIELDS]
    return TransactionBatch(
        transaction_key=ids[0],
        customer_key=ids[1],
        terminal_key=ids[2],
        event_time_ms=record_batch.column("event_time").view(pa.int64()).to_numpy(),
        amount=record_batch.column("amount").to_numpy(),
        category_keys=np.stack(categories, axis=1),
    )
