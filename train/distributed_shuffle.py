"""From Parquet files to partitions by customer: the first pass over data beyond memory.

Each task reads some row groups, checks them as `read_transactions` does, and appends every row to
the file of its customer's partition. No task holds more than one chunk of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flagger.errors import DataError
from flagger.features import CATEGORY_FIELDS
from flagger.state.records import DAY_MS
from train.sources import SCHEMA, ColumnMap, read_transactions, to_batch

__all__ = [
    "PLACE",
    "Piece",
    "Summary",
    "load_partition",
    "partition_of",
    "plan_pieces",
    "shuffle_piece",
]

PLACE = "place"
"""Column of a row's number in all files together, from 0: equal times keep this order."""
_SHUFFLED_SCHEMA = SCHEMA.append(pa.field(PLACE, pa.int64(), nullable=False))
_CHUNK_ROWS = 262_144
"""Rows that a task holds at a time, about 100 bytes each."""


@dataclass(frozen=True)
class Piece:
    """What one task reads.

    Attributes:
        number: From 0.
        file: The Parquet file.
        row_groups: Which of its row groups, neighbours.
        first_row: Number of their first row in the file, from 0.
        first_place: Number of their first row in all files together, from 0.
    """

    number: int
    file: Path
    row_groups: tuple[int, ...]
    first_row: int
    first_place: int


@dataclass(frozen=True)
class Summary:
    """What is known of some transactions after the first pass.

    Attributes:
        rows: Transactions.
        unlabelled: Those without an outcome.
        first_ms: Earliest event time, epoch milliseconds.
        last_ms: Latest event time.
        outcomes: By day since 1970: transactions (`size`) and frauds (`sum`).
        categories: By field a table with the same columns, by day and value.
    """

    rows: int
    unlabelled: int
    first_ms: int
    last_ms: int
    outcomes: pd.DataFrame
    categories: dict[str, pd.DataFrame]

    @property
    def frauds(self) -> int:
        """Transactions that are fraud."""
        return int(self.outcomes["sum"].sum())

    @classmethod
    def merge(cls, parts: Sequence[Summary]) -> Summary:
        """Return the summary of all; `parts` must not be empty."""
        return cls(
            rows=sum(part.rows for part in parts),
            unlabelled=sum(part.unlabelled for part in parts),
            first_ms=min(part.first_ms for part in parts),
            last_ms=max(part.last_ms for part in parts),
            outcomes=_add([part.outcomes for part in parts]),
            categories={
                name: _add([part.categories[name] for part in parts]) for name in CATEGORY_FIELDS
            },
        )


def _add(tables: list[pd.DataFrame]) -> pd.DataFrame:
    together = pd.concat(tables)
    return together.groupby(level=list(range(together.index.nlevels))).sum()


def plan_pieces(data: Path, piece_rows: int) -> tuple[list[Piece], int]:
    """Return what the tasks read, and the number of rows.

    Args:
        data: A .parquet file, or a folder of such files with one layout, read in order of name.
        piece_rows: Rows of a piece; a row group is never split, so it may be more.

    Raises:
        DataError: No Parquet, not readable, or no rows.
    """
    files = sorted(data.glob("*.parquet")) if data.is_dir() else [data]
    if not files or any(file.suffix.lower() != ".parquet" for file in files):
        raise DataError(
            file=str(data),
            problem="is neither a .parquet file nor a folder of them",
            remedy="--engine dask splits work by row groups, which only Parquet has: convert it",
        )
    pieces: list[Piece] = []
    place = 0
    for file in files:
        try:
            metadata = pq.read_metadata(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                file=str(file),
                problem=f"cannot be read ({' '.join(str(error).split())})",
                remedy="Check the file's name and that it is whole",
            ) from error
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        start = row = 0
        for end in range(1, len(sizes) + 1):
            rows = sum(sizes[start:end])
            if rows >= piece_rows or (end == len(sizes) and rows):
                groups = tuple(range(start, end))
                pieces.append(Piece(len(pieces), file, groups, row, place))
                start, row, place = end, row + rows, place + rows
    if not pieces:
        raise DataError(file=str(data), problem="has no rows", remedy="Give a file with data")
    return pieces, place


def partition_of(customer_keys: npt.NDArray[np.uint64], partitions: int) -> npt.NDArray[np.int64]:
    """Return each customer's partition, int64 [n].

    By the key's upper half: tables of entities take the lower bits for the place of a record, and
    these must stay different inside a partition.
    """
    numbers: npt.NDArray[np.int64] = (customer_keys >> np.uint64(32)).astype(np.int64) % partitions
    return numbers


def _summarise(batch: pa.RecordBatch) -> Summary:
    times = batch.column("event_time").cast(pa.int64()).to_numpy()
    outcomes = pc.fill_null(batch.column("is_fraud"), False).to_numpy(zero_copy_only=False)
    frame = pd.DataFrame({"day": times // DAY_MS, "fraud": outcomes.astype(np.int64)})
    for name in CATEGORY_FIELDS:
        frame[name] = batch.column(name).to_pandas()
    return Summary(
        rows=batch.num_rows,
        unlabelled=batch.column("is_fraud").null_count,
        first_ms=int(times.min()),
        last_ms=int(times.max()),
        outcomes=frame.groupby("day")["fraud"].agg(["size", "sum"]),
        categories={
            name: frame.groupby(["day", name])["fraud"].agg(["size", "sum"])
            for name in CATEGORY_FIELDS
        },
    )


def shuffle_piece(piece: Piece, columns: ColumnMap, partitions: int, scratch: Path) -> Summary:
    """Write a piece's rows to the folders of their partitions; running it again does no harm.

    Raises:
        DataError: A column or a cell cannot be used; names file, row and value.
    """
    summaries: list[Summary] = []
    names: dict[int, Path] = {}
    writers: dict[int, pq.ParquetWriter] = {}
    place = piece.first_place
    batches = read_transactions(
        piece.file,
        columns,
        chunk_rows=_CHUNK_ROWS,
        row_groups=piece.row_groups,
        first_row=piece.first_row + 1,
    )
    with ExitStack() as stack:
        for batch in batches:
            summaries.append(_summarise(batch))
            numbers = partition_of(to_batch(batch).customer_key, partitions)
            places = pa.array(np.arange(place, place + batch.num_rows))
            placed = pa.RecordBatch.from_arrays([*batch.columns, places], schema=_SHUFFLED_SCHEMA)
            for number in np.unique(numbers).tolist():
                if number not in writers:
                    folder = scratch / "shuffled" / str(number)
                    folder.mkdir(parents=True, exist_ok=True)
                    names[number] = folder / f"{piece.number}.parquet"
                    unfinished = names[number].with_suffix(".unfinished")
                    writer = pq.ParquetWriter(unfinished, _SHUFFLED_SCHEMA)
                    writers[number] = stack.enter_context(writer)
                chosen = pa.array(np.flatnonzero(numbers == number))
                writers[number].write_batch(placed.take(chosen))
            place += batch.num_rows
    for name in names.values():
        name.with_suffix(".unfinished").replace(name)
    return Summary.merge(summaries)


def load_partition(partition: int, scratch: Path) -> pa.Table:
    """Return a partition's transactions in order of time, equal times in order of the files."""
    names = sorted((scratch / "shuffled" / str(partition)).glob("*.parquet"))
    if not names:
        return _SHUFFLED_SCHEMA.empty_table()
    table = pa.concat_tables(
        [pq.read_table(name, schema=_SHUFFLED_SCHEMA, partitioning=None) for name in names]
    )
    times = table["event_time"].cast(pa.int64()).to_numpy()
    return table.take(np.lexsort((table[PLACE].to_numpy(), times))).combine_chunks()
