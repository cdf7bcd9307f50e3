"""Feature rows of one partition of the customers, bit by bit those of a replay of all.

A customer's features need the customer's own transactions only. A terminal's features need the
transactions and frauds of all partitions, but only of half days that are over (see `Replay`). So
there are two passes: `share_activity` writes what a partition's transactions do at terminals, and
`replay_partition` applies what all partitions wrote, half day by half day, as each streamer applies
the others' activity (docs/streaming.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flagger.features import (
    DUPLICATE,
    FEATURE_NAMES,
    FeatureContract,
    FeatureEngine,
    LabelBatch,
    TransactionBatch,
)
from flagger.features.engine import ActivityBatch
from flagger.state.records import TERMINAL_BUCKET_MS
from train.distributed_shuffle import PLACE, load_partition
from train.sources import SCHEMA, to_batch
from train.split import Windows

__all__ = ["PartitionRows", "replay_partition", "share_activity"]

_SPAN_BUCKETS = 14
"""Half days in one file of the shared logs: a week, of all partitions, is in memory at a time."""
_CHUNK_ROWS = 65_536
_NAMED = ("transaction_id", "event_time", "customer_id", "is_fraud", PLACE)


@dataclass(frozen=True)
class PartitionRows:
    """The scorable transactions of a partition, by window: `fit`, `validation` and `test`.

    Attributes:
        rows: Feature rows, float32 [n, F].
        is_fraud: Outcomes, bool [n].
        named: What else measures need; columns `transaction_id`, `event_time`, `customer_id`,
            `is_fraud` and `place`. Not for `fit`, which nothing is measured on.
        duplicates: Repeated transactions among all of the partition.
    """

    rows: Mapping[str, npt.NDArray[np.float32]]
    is_fraud: Mapping[str, npt.NDArray[np.bool_]]
    named: Mapping[str, pa.Table]
    duplicates: int


def _batch_of(table: pa.Table) -> tuple[TransactionBatch, npt.NDArray[np.bool_]]:
    """Return what the engine takes, and the outcomes; one that is null counts as genuine."""
    whole = pa.RecordBatch.from_arrays(
        [table[name].combine_chunks() for name in SCHEMA.names], schema=SCHEMA
    )
    outcomes = pc.fill_null(whole.column("is_fraud"), False)
    return to_batch(whole), outcomes.to_numpy(zero_copy_only=False)


def _write_by_span(table: pa.Table, kind: str, partition: int, scratch: Path) -> None:
    """Write a table with the column `bucket`, rising, to one file for each span of time."""
    spans = table["bucket"].to_numpy() // _SPAN_BUCKETS
    edges = [0, *(np.flatnonzero(np.diff(spans)) + 1).tolist(), len(spans)]
    for start, end in pairwise(edges):
        if start < end:
            folder = scratch / kind / str(spans[start])
            folder.mkdir(parents=True, exist_ok=True)
            name = folder / f"{partition}.parquet"
            pq.write_table(table.slice(start, end - start), name.with_suffix(".unfinished"))
            name.with_suffix(".unfinished").replace(name)


def share_activity(partition: int, contract: FeatureContract, scratch: Path) -> int:
    """Write how a partition's transactions and frauds move terminals; return how many there are.

    Repeated transactions move nothing. Which ones are repeated depends on the customer alone.
    """
    table = load_partition(partition, scratch)
    if table.num_rows == 0:
        return 0
    batch, is_fraud = _batch_of(table)
    engine = FeatureEngine(contract)
    fresh = np.empty(len(batch), dtype=np.bool_)
    for start in range(0, len(batch), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        flags = engine.process(batch.take(part), count_at_terminals=False).flags
        fresh[part] = flags & DUPLICATE == 0
    buckets = batch.event_time_ms // TERMINAL_BUCKET_MS
    keys, times = batch.terminal_key[fresh], buckets[fresh]
    order = np.lexsort((keys, times))
    keys, times = keys[order], times[order]
    changes = (keys[1:] != keys[:-1]) | (times[1:] != times[:-1])
    first = np.flatnonzero(np.append(True, changes)) if len(keys) else np.empty(0, dtype=np.intp)
    counts = np.diff(np.append(first, len(keys))).astype(np.uint32)
    activity = {"bucket": times[first], "terminal_key": keys[first], "count": counts}
    _write_by_span(pa.table(activity), "activity", partition, scratch)
    frauds = np.flatnonzero(is_fraud & fresh)
    labels = {
        "bucket": buckets[frauds],
        "event_time_ms": batch.event_time_ms[frauds],
        PLACE: table[PLACE].to_numpy()[frauds],
        "transaction_key": batch.transaction_key[frauds],
        "terminal_key": batch.terminal_key[frauds],
    }
    _write_by_span(pa.table(labels), "labels", partition, scratch)
    return len(batch)


class _SharedLog:
    """What all partitions wrote of one kind, as far as some terminals are concerned."""

    def __init__(
        self, kind: str, terminals: npt.NDArray[np.uint64], order: tuple[str, ...], scratch: Path
    ) -> None:
        self._folder = scratch / kind
        self._terminals = terminals
        self._order = order
        self._span: int | None = None
        self._columns: dict[str, npt.NDArray[np.generic]] = {}

    def first_bucket(self, default: int) -> int:
        """Return a half day before which the log has nothing; `default` if the log is empty."""
        spans = [int(folder.name) for folder in self._folder.glob("*")]
        return min(spans) * _SPAN_BUCKETS if spans else default

    def at(self, bucket: int) -> dict[str, npt.NDArray[np.generic]]:
        """Return the columns of a half day's entries, in order."""
        span = bucket // _SPAN_BUCKETS
        if span != self._span:
            self._span, self._columns = span, self._load(span)
        if not self._columns:
            return {}
        first, last = np.searchsorted(self._columns["bucket"], [bucket, bucket + 1])
        return {name: values[first:last] for name, values in self._columns.items()}

    def _load(self, span: int) -> dict[str, npt.NDArray[np.generic]]:
        parts = []
        for name in sorted((self._folder / str(span)).glob("*.parquet")):
            table = pq.read_table(name, partitioning=None)
            parts.append(table.filter(np.isin(table["terminal_key"].to_numpy(), self._terminals)))
        if not parts:
            return {}
        table = pa.concat_tables(parts)
        table = table.take(np.lexsort([table[name].to_numpy() for name in reversed(self._order)]))
        return {name: table[name].to_numpy() for name in table.schema.names}


class _Terminals:
    """Moves the terminals of an engine by the shared logs, in order of time."""

    def __init__(self, engine: FeatureEngine, batch: TransactionBatch, scratch: Path) -> None:
        self._engine = engine
        own = np.unique(batch.terminal_key)
        self._activity = _SharedLog("activity", own, ("bucket", "terminal_key"), scratch)
        # The order of labels at a terminal decides which ones its ring of labels remembers.
        self._labels = _SharedLog("labels", own, ("event_time_ms", PLACE), scratch)
        self._next = self._activity.first_bucket(0)

    def catch_up(self, bucket: int) -> None:
        """Apply everything of the half days before `bucket`."""
        for number in range(self._next, bucket):
            if activity := self._activity.at(number):
                self._engine.apply_activity(
                    ActivityBatch(
                        activity["terminal_key"].astype(np.uint64),
                        activity["bucket"].astype(np.int32),
                        activity["count"].astype(np.uint32),
                    ),
                    number,
                )
            if labels := self._labels.at(number):
                frauds = np.ones(len(labels["bucket"]), dtype=np.uint8)
                self._engine.apply_labels(
                    LabelBatch(
                        labels["transaction_key"].astype(np.uint64),
                        labels["terminal_key"].astype(np.uint64),
                        labels["event_time_ms"].astype(np.int64),
                        frauds,
                    )
                )
        self._next = max(self._next, bucket)


def replay_partition(
    partition: int, contract: FeatureContract, windows: Windows, scratch: Path
) -> PartitionRows:
    """Return the rows of a partition, after all partitions have shared their activity."""
    table = load_partition(partition, scratch)
    batch, _ = _batch_of(table)
    masks = windows.masks(batch.event_time_ms)
    labelled = table["is_fraud"].is_valid().to_numpy()
    engine = FeatureEngine(contract)
    terminals = _Terminals(engine, batch, scratch)
    rows = {
        name: np.empty((int((mask & labelled).sum()), len(FEATURE_NAMES)), dtype=np.float32)
        for name, mask in masks.items()
    }
    chosen: dict[str, list[npt.NDArray[np.intp]]] = {
        name: [np.empty(0, dtype=np.intp)] for name in masks
    }
    filled = dict.fromkeys(masks, 0)
    duplicates = 0
    buckets = batch.event_time_ms // TERMINAL_BUCKET_MS
    edges = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(batch)]
    for start, end in pairwise(edges) if len(batch) else ():
        terminals.catch_up(int(buckets[start]))
        result = engine.process(batch.take(slice(start, end)), count_at_terminals=False)
        repeated = result.flags & DUPLICATE != 0
        duplicates += int(repeated.sum())
        for name, mask in masks.items():
            kept = np.flatnonzero(mask[start:end] & labelled[start:end] & ~repeated)
            rows[name][filled[name] : filled[name] + len(kept)] = result.rows[kept]
            filled[name] += len(kept)
            chosen[name].append(kept + start)
    places = {name: np.concatenate(parts) for name, parts in chosen.items()}
    outcomes = {name: table["is_fraud"].take(place).to_numpy() for name, place in places.items()}
    named = {name: table.select(list(_NAMED)).take(places[name]) for name in ("validation", "test")}
    kept_rows = {name: rows[name][: filled[name]] for name in masks}
    return PartitionRows(kept_rows, outcomes, named, duplicates)
