"""Replay of history: the rows that the streamer would have computed, with labels as known then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flagger.errors import DataError
from flagger.features import (
    DUPLICATE,
    FeatureContract,
    FeatureEngine,
    FeatureRows,
    LabelBatch,
    TransactionBatch,
)
from flagger.state.records import TERMINAL_BUCKET_MS
from train.sources import to_batch

__all__ = ["Replay", "replay"]


class Replay:
    """One pass through history in event-time order.

    A terminal's frauds are counted by half day and read only from half days that were over
    `label_delay` before a transaction. So it is exact to apply a half day's labels when the
    stream leaves that half day: no row can see them before they were known, and none misses them.

    Attributes:
        engine: Holds the state as of the last transaction.
    """

    def __init__(self, contract: FeatureContract) -> None:
        self.engine = FeatureEngine(contract)
        self._pending: list[LabelBatch] = []
        self._last_time_ms = -(2**62)

    def advance(self, batch: TransactionBatch, is_fraud: npt.NDArray[np.bool_]) -> FeatureRows:
        """Compute the next transactions' rows.

        Args:
            batch: In event-time order, none before those of earlier calls.
            is_fraud: Their outcomes, bool [n].

        Raises:
            DataError: Out of order.
        """
        if len(batch) == 0:
            return self.engine.process(batch)
        times = batch.event_time_ms
        if times[0] < self._last_time_ms or np.any(times[1:] < times[:-1]):
            raise DataError(
                file="replay",
                column="event_time",
                problem="the transactions are not in the order of their times",
                remedy="Sort them by event_time first (train.sources.read_sorted does)",
            )
        buckets = times // TERMINAL_BUCKET_MS
        if buckets[0] > self._last_time_ms // TERMINAL_BUCKET_MS:
            self.apply_pending_labels()
        cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(batch)]
        parts = []
        for start, stop in pairwise(cuts):
            if start:
                self.apply_pending_labels()
            part = batch.take(slice(start, stop))
            result = self.engine.process(part)
            frauds = np.flatnonzero(is_fraud[start:stop] & (result.flags & DUPLICATE == 0))
            self._pending.append(
                LabelBatch(
                    part.transaction_key[frauds],
                    part.terminal_key[frauds],
                    part.event_time_ms[frauds],
                    np.ones(len(frauds), dtype=np.uint8),
                )
            )
            parts.append(result)
        self._last_time_ms = int(times[-1])
        if len(parts) == 1:
            return parts[0]
        return FeatureRows(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.flags for part in parts]),
        )

    def apply_pending_labels(self) -> None:
        """Count the frauds of the half day under way; for the end of a replay."""
        if self._pending:
            self.engine.apply_labels(LabelBatch.concat(self._pending))
            self._pending = []


def replay(chunks: Iterable[pa.RecordBatch], contract: FeatureContract) -> Iterator[FeatureRows]:
    """Yield the feature rows of each chunk, n rows for n transactions.

    Args:
        chunks: In `SCHEMA` and in event-time order over all chunks; equal times keep their order.
            An outcome that is null counts as genuine.
        contract: Vocabularies and label delay.

    Raises:
        DataError: Out of order.
    """
    history = Replay(contract)
    for chunk in chunks:
        outcomes = pc.fill_null(chunk.column("is_fraud"), False)
        yield history.advance(to_batch(chunk), outcomes.to_numpy(zero_copy_only=False))
