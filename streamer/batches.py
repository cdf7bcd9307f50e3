"""Batches on their way: state moved, scores asked for, outputs written in the order of the log."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelRefusedError, StateStoreError
from flagger.features import ALREADY_APPLIED, DUPLICATE, LATE
from flagger.triton import PendingScores
from streamer.commits import Commits
from streamer.hot_state import HotState
from streamer.metrics import StreamerMetrics
from streamer.outputs import OutputWriter
from streamer.scoring import PatientScorer
from streamer.segments import Segment
from streamer.sink import DecisionSink
from streamer.source import Assignment

__all__ = ["Batches"]


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A segment whose state has moved and whose outputs are not written yet.

    Attributes:
        segment: The messages.
        rows: The segment's rows that Triton scores, intp [n].
        features: What it was sent, float32 [n, F].
        hashes: Fingerprints of the features, uint64 [n].
        forwarded: Rows that the gateway has decided already.
        counted: Rows that moved the state for the first time: they belong in the activity log.
        pending: The answer under way; None if there is nothing to score.
    """

    segment: Segment
    rows: npt.NDArray[np.intp]
    features: npt.NDArray[np.float32]
    hashes: npt.NDArray[np.uint64]
    forwarded: list[int]
    counted: npt.NDArray[np.bool_]
    pending: PendingScores | None


class Batches:
    """The batches between the log and the open transaction.

    Attributes:
        processed: Partition -> offset up to which the state has moved.
    """

    def __init__(
        self,
        state: HotState,
        scorer: PatientScorer,
        sink: DecisionSink,
        outputs: OutputWriter,
        commits: Commits,
        metrics: StreamerMetrics,
        *,
        max_in_flight: int,
    ) -> None:
        self._state = state
        self._scorer = scorer
        self._sink = sink
        self._outputs = outputs
        self._commits = commits
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._in_flight: deque[_InFlight] = deque()
        self._first_live = np.zeros(1, dtype=np.int64)
        self.processed: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._in_flight)

    def restart(self, plan: dict[int, Assignment]) -> None:
        """Begin with new partitions; what was on its way is dropped."""
        self._in_flight.clear()
        self.processed = {p: a.start for p, a in plan.items()}
        self._first_live = np.zeros(max(plan, default=0) + 1, dtype=np.int64)
        for p, assignment in plan.items():
            self._first_live[p] = assignment.committed

    def process(self, segment: Segment) -> None:
        """Move the state by the segment's rows and send those to Triton that need a score."""
        transactions = segment.decoded.transactions
        positions = segment.positions
        with self._metrics.timed("load"):
            self._state.load(transactions.customer_key)
        with self._metrics.timed("features"):
            features = self._state.engine.process(transactions, positions, count_at_terminals=False)
            hashes = features.hashes()
        live = positions.offset >= self._first_live[positions.partition]
        flags = features.flags
        if (live & (flags == ALREADY_APPLIED)).any():
            raise StateStoreError(
                "The state store includes transactions that were never committed in Kafka: it "
                "holds the state of another log. Use an empty Valkey database."
            )
        repeated = live & (flags & DUPLICATE != 0)
        counted = live & ~repeated
        to_score = counted.copy()
        forwarded = [row for row in segment.decoded.decided if counted[row]]
        to_score[forwarded] = False
        rows = np.flatnonzero(to_score)
        chosen = features.rows if len(rows) == len(segment) else features.rows[rows]
        with self._metrics.timed("submit"):
            pending = self._scorer.submit(chosen) if len(rows) else None
        self._in_flight.append(
            _InFlight(segment, rows, chosen, hashes[rows], forwarded, counted, pending)
        )
        self.processed |= segment.polled.end_offsets()
        self._metrics.replayed.inc(int((~live).sum()))
        self._metrics.duplicates.inc(int(repeated.sum()))
        self._metrics.late.inc(int((live & (flags & LATE != 0)).sum()))
        if len(rows):
            self._metrics.batch_rows.observe(len(rows))
        while len(self._in_flight) > self._max_in_flight:
            self._write_first()

    def write_answered(self) -> None:
        """Write, in order, the batches that are answered while nothing has to be waited for."""
        while self._in_flight and not self._sink.busy:
            pending = self._in_flight[0].pending
            if pending is not None and not pending.done:
                break
            self._write_first()
        self._metrics.in_flight.set(len(self._in_flight))

    def _write_first(self) -> None:
        """Write the oldest batch; waits for its scores, and for the commit under way."""
        batch = self._in_flight[0]
        rows, hashes = batch.rows, batch.hashes
        scores = np.empty(0, dtype=np.float32)
        refused: dict[int, ModelRefusedError] = {}
        if batch.pending is not None:
            with self._metrics.timed("wait_scores"):
                scores, refused = self._scorer.result(batch.pending, batch.features)
        with self._metrics.timed("wait_commit"):
            self._commits.settle()
        with self._metrics.timed("write"):
            if refused:
                self._outputs.write_refused(batch.segment, rows, refused)
                good = ~np.isnan(scores)
                rows, hashes, scores = rows[good], hashes[good], scores[good]
            self._outputs.write_decisions(batch.segment, rows, scores, hashes, batch.forwarded)
            self._outputs.write_bad(batch.segment, self._first_live)
            transactions = batch.segment.decoded.transactions
            self._sink.count(
                transactions.terminal_key[batch.counted], transactions.event_time_ms[batch.counted]
            )
        self._in_flight.popleft()
        self._commits.note_written(batch.segment.polled.end_offsets())

    def write_all(self) -> None:
        """Write everything that was processed."""
        while self._in_flight:
            self._write_first()
