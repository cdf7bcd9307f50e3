"""Batches on their way: state moved, scores asked for, outputs written in the order of the log."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelUnavailableError, StateStoreError
from flagger.features import ALREADY_APPLIED, DUPLICATE, LATE, MOVED
from flagger.live_rulebook import LiveRulebook
from flagger.triton import PendingScores
from streamer.commits import Commits
from streamer.hot_state import HotState
from streamer.in_flight import InFlight
from streamer.metrics import StreamerMetrics
from streamer.outputs import OutputWriter
from streamer.scoring import PatientScorer
from streamer.segments import Segment
from streamer.sink import DecisionSink
from streamer.source import Assignment
from streamer.tried import TriedModels
from streamer.verdicts import Judge, Verdicts

__all__ = ["Batches"]


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
        tried: TriedModels,
        rulebook: LiveRulebook,
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
        self._tried = tried
        self._rulebook = rulebook
        self._in_flight: deque[InFlight] = deque()
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
            canary = self._tried.split(chosen, transactions, rows)
            asked = chosen if canary is None else chosen[~canary.mask]
            pending = self._scorer.submit(asked) if len(asked) else None
        self._in_flight.append(
            InFlight(segment, rows, chosen, hashes[rows], forwarded, counted, pending, canary)
        )
        self.processed |= segment.polled.end_offsets()
        self._show_forwarded(segment, features.rows, forwarded)
        self._metrics.replayed.inc(int((~live).sum()))
        self._metrics.duplicates.inc(int(repeated.sum()))
        self._metrics.forwarded_repeats.inc(sum(repeated[row] for row in segment.decoded.decided))
        self._metrics.late.inc(int((live & (flags & LATE != 0)).sum()))
        self._metrics.moved.inc(int((live & (flags & MOVED != 0)).sum()))
        if len(rows):
            self._metrics.batch_rows.observe(len(rows))
        while len(self._in_flight) > self._max_in_flight:
            self._write_first()

    def _show_forwarded(
        self, segment: Segment, rows: npt.NDArray[np.float32], forwarded: list[int]
    ) -> None:
        """Show what the live version decided at the gateway: as much traffic as any other."""
        decided = segment.decoded.decided
        live = [row for row in forwarded if decided[row].model_version == self._tried.live_version]
        scores = {row: decided[row].score for row in live}
        known = [row for row in live if scores[row] is not None]
        if known:
            keys = segment.decoded.transactions.category_keys[known]
            told = np.array([scores[row] for row in known], dtype=np.float32)
            self._tried.observe(rows[known], told, keys)

    def write_answered(self) -> None:
        """Write, in order, the batches that are decided while nothing has to be waited for."""
        for batch in self._in_flight:  # explanations overlap with the scores of later batches
            if batch.verdicts is None and batch.has_answers():
                batch.verdicts = self._decided(batch)
            if batch.verdicts is None:
                break
        while self._in_flight:
            verdicts = self._in_flight[0].verdicts
            if verdicts is None or not verdicts.ready:
                break
            self._write_first()
        self._metrics.in_flight.set(len(self._in_flight))

    def write_within(self, limit_s: float) -> None:
        """As `write_answered`, and wait up to `limit_s` seconds for answers under way."""
        deadline_s = time.monotonic() + limit_s
        self.write_answered()
        while self._in_flight and (left_s := deadline_s - time.monotonic()) > 0:
            first = self._in_flight[0]
            with self._metrics.timed("wait_reasons" if first.verdicts else "wait_scores"):
                first.wait(left_s)
            self.write_answered()

    def _decided(self, batch: InFlight) -> Verdicts:
        """Decide, by the model or without it, then by lists and rules."""
        verdicts = self._judged(batch)
        overruler = self._rulebook.current
        if not overruler or not len(batch.rows):
            return verdicts
        transactions = batch.segment.decoded.transactions.take(batch.rows)
        return verdicts.overruled_by(overruler, transactions, batch.features)

    def _judged(self, batch: InFlight) -> Verdicts:
        """Wait for the scores and decide; rows that are refused leave the batch."""
        if not len(batch.rows):
            return self._judge.by_rules(batch.features)
        try:
            scores = self._scores(batch)
        except ModelUnavailableError:
            if not self._falls_back:
                raise
            batch.canary = None
            return self._judge.by_rules(batch.features)
        good = ~np.isnan(scores)
        if not good.all():
            batch.keep(good)
            scores = scores[good]
        stamps_ms = batch.segment.polled.timestamp_ms[batch.segment.decoded.source[batch.rows]]
        waited_ms = (self._clock_ms() - stamps_ms).astype(np.float64)
        if batch.canary is None:
            self._show(batch.features, scores, batch, slice(None))
            return self._judge.by_model(batch.features, scores, waited_ms)
        live = ~batch.canary.mask
        self._show(batch.features[live], scores[live], batch, live)
        verdicts = self._judge.by_model(batch.features[live], scores[live], waited_ms[live])
        return batch.canary.decided(scores[~live], waited_ms, verdicts)

    def _scores(self, batch: InFlight) -> npt.NDArray[np.float32]:
        """Wait for the scores, float32 [n], each by its version; NaN where they are refused.

        What the canary does not answer is asked of the live version.
        """
        if batch.canary is None and batch.pending is not None:
            return self._live_scores(batch, slice(None), batch.pending)
        scores = np.empty(len(batch.rows), dtype=np.float32)
        live = batch.is_live
        if batch.pending is not None:
            scores[live] = self._live_scores(batch, live, batch.pending)
        theirs = None if batch.canary is None else batch.canary.scores()
        if theirs is None:
            batch.canary = None
            pending = self._scorer.submit(batch.features[~live])
            theirs = self._live_scores(batch, ~live, pending)
        scores[~live] = theirs
        return scores

    def _live_scores(
        self,
        batch: InFlight,
        which: npt.NDArray[np.bool_] | slice,
        pending: PendingScores,
    ) -> npt.NDArray[np.float32]:
        """Wait for the live version's scores of some rows; NaN, and noted, where it refuses."""
        with self._metrics.timed("wait_scores"):
            scores, refused = self._scorer.result(pending, batch.features[which])
        rows = batch.rows[which]
        batch.refused |= {int(rows[i]): error for i, error in refused.items()}
        return scores

    def _show(
        self,
        features: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        batch: InFlight,
        which: npt.NDArray[np.bool_] | slice,
    ) -> None:
        keys = batch.segment.decoded.transactions.category_keys[batch.rows[which]]
        self._tried.observe(features, scores, keys)

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
        self._commits.note_written(segment.polled.end_offsets(), awaited=len(batch.rows) > 0)

    def write_all(self) -> None:
        """Write everything that was processed."""
        while self._in_flight:
            self._write_first()
