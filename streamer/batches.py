"""Batches on their way: state moved, scores asked for, outputs written in the order of the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelRefusedError, ModelUnavailableError, StateStoreError
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
from streamer.verdicts import Judge, Verdicts

__all__ = ["Batches"]


@dataclass(slots=True)
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
        verdicts: What is decided, once the answer is there.
        refused: Rows of the segment that the model server refuses, with why.
    """

    segment: Segment
    rows: npt.NDArray[np.intp]
    features: npt.NDArray[np.float32]
    hashes: npt.NDArray[np.uint64]
    forwarded: list[int]
    counted: npt.NDArray[np.bool_]
    pending: PendingScores | None
    verdicts: Verdicts | None = None
    refused: dict[int, ModelRefusedError] = field(default_factory=dict)


class Batches:
    """The batches between the log and the open transaction.

    Attributes:
        processed: Partition -> offset up to which the state has moved.
    """

    def __init__(
        self,
        state: HotState,
        scorer: PatientScorer,
        judge: Judge,
        sink: DecisionSink,
        outputs: OutputWriter,
        commits: Commits,
        metrics: StreamerMetrics,
        *,
        max_in_flight: int,
        store_all: Callable[[], None],
        falls_back: bool,
        clock_ms: Callable[[], int],
    ) -> None:
        self._state = state
        self._scorer = scorer
        self._judge = judge
        self._sink = sink
        self._outputs = outputs
        self._commits = commits
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._store_all = store_all
        self._falls_back = falls_back
        self._clock_ms = clock_ms
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
            self._state.load(transactions.customer_key, self._store_all)
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
        """Write, in order, the batches that are decided while nothing has to be waited for."""
        for batch in self._in_flight:  # explanations overlap with the scores of later batches
            if batch.verdicts is None and (batch.pending is None or batch.pending.done):
                batch.verdicts = self._decided(batch)
            if batch.verdicts is None:
                break
        while self._in_flight:
            verdicts = self._in_flight[0].verdicts
            if verdicts is None or not verdicts.ready:
                break
            self._write_first()
        self._metrics.in_flight.set(len(self._in_flight))

    def _decided(self, batch: _InFlight) -> Verdicts:
        """Wait for the scores and decide; rows that are refused leave the batch."""
        if batch.pending is None:
            return self._judge.by_rules(batch.features)  # of no rows
        try:
            with self._metrics.timed("wait_scores"):
                scores, refused = self._scorer.result(batch.pending, batch.features)
        except ModelUnavailableError:
            if not self._falls_back:
                raise
            return self._judge.by_rules(batch.features)
        if refused:
            batch.refused = {int(batch.rows[i]): error for i, error in refused.items()}
            good = ~np.isnan(scores)
            batch.rows, batch.hashes = batch.rows[good], batch.hashes[good]
            batch.features, scores = batch.features[good], scores[good]
        stamps_ms = batch.segment.polled.timestamp_ms[batch.segment.decoded.source[batch.rows]]
        waited_ms = (self._clock_ms() - stamps_ms).astype(np.float64)
        return self._judge.by_model(batch.features, scores, waited_ms)

    def _write_first(self) -> None:
        """Write the oldest batch; waits for its scores and reasons."""
        batch = self._in_flight[0]
        verdicts = batch.verdicts or self._decided(batch)
        with self._metrics.timed("wait_reasons"):
            reasons = verdicts.reasons()
        segment = batch.segment
        with self._metrics.timed("write"):
            self._outputs.write_refused(segment, batch.refused)
            self._outputs.write_decisions(
                segment, batch.rows, batch.hashes, verdicts, reasons, batch.forwarded
            )
            self._outputs.write_bad(segment, self._first_live)
            transactions = segment.decoded.transactions
            self._sink.count(
                transactions.terminal_key[batch.counted], transactions.event_time_ms[batch.counted]
            )
        self._in_flight.popleft()
        self._commits.note_written(segment.polled.end_offsets())

    def write_all(self) -> None:
        """Write everything that was processed."""
        while self._in_flight:
            self._write_first()
