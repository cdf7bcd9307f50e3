"""The streamer's loop: poll, align, compute features, ask Triton, decide, commit.

One thread owns the state and runs the loop. Three things overlap with it: Triton's answers, the
Kafka commit, and the writing of snapshots to the store. Batches are whatever has arrived while the
loop was busy: small when the load is low, up to `max_batch_rows` when it is high.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from confluent_kafka import Message

from flagger.errors import BadMessageError, StateStoreError
from flagger.features import ALREADY_APPLIED, DUPLICATE, LATE
from flagger.models import ModelVersion
from flagger.settings import Settings
from flagger.state.store import StateStore
from flagger.triton import ModelName, PendingScores, Scorer
from streamer.alignment import Aligner, window_limit_ms
from streamer.commits import Commits
from streamer.hot_state import HotState
from streamer.metrics import StreamerMetrics
from streamer.outputs import OutputWriter
from streamer.scoring import PatientScorer
from streamer.segments import Segment, read_segment
from streamer.side_logs import SideLogs
from streamer.sink import DecisionSink
from streamer.source import Assignment, TransactionSource

__all__ = ["Pipeline"]

MAX_HELD_MESSAGES = 200_000
"""At this many messages that wait for slower partitions, their partitions are paused."""
_IDLE_WAIT_S = 0.02
_BUSY_WAIT_S = 0.001
_SIDE_LOG_EVERY_S = 0.05
_log = logging.getLogger(__name__)


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


class Pipeline:
    """One streamer.

    Args:
        settings: With all addresses filled in.
        model: The live version.
        metrics: Where to count.
        keep_going: Asked in every round; False ends `run` after everything processed is committed.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        model: ModelVersion,
        metrics: StreamerMetrics,
        *,
        keep_going: Callable[[], bool],
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._keep_going = keep_going
        self._clock_ms = clock_ms
        self._label_delay_ms = model.contract.label_delay_days * 86_400_000
        self._connection = Scorer(settings.triton_url or "", timeout_ms=settings.triton_timeout_ms)
        self._scorer = PatientScorer(
            self._connection,
            ModelName(settings.streamer_model, model.version),
            timeout_ms=settings.triton_timeout_ms,
            keep_going=keep_going,
            on_error=lambda kind: metrics.model_errors.labels(kind).inc(),
        )
        self._state = HotState(model.contract, StateStore(settings.valkey_url or ""), settings)
        self._sink = DecisionSink(settings)
        self._outputs = OutputWriter(self._sink, model, settings, metrics, clock_ms)
        self._side_logs = SideLogs(
            settings,
            self._state.side_positions(),
            clock_ms=clock_ms,
            on_bad_label=self._refuse_label,
        )
        self._source = TransactionSource(
            settings, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
        )
        self._commits = Commits(
            self._sink, self._source, metrics, interval_ms=settings.commit_interval_ms
        )
        self._aligner = Aligner(self._label_delay_ms, self._source.unfinished)
        self._in_flight: deque[_InFlight] = deque()
        self._plan: dict[int, Assignment] = {}
        self._first_live = np.zeros(1, dtype=np.int64)
        self._processed: dict[int, int] = {}
        self._known_until_ms = 0
        self._flushed_s = self._side_logs_read_s = time.monotonic()

    def run(self) -> None:
        """Stream until `keep_going` says no; what was processed is then committed and stored."""
        try:
            while self._keep_going():
                self._round()
            self._hand_over()
            self._source.close()
        except BaseException:
            with suppress(Exception):  # the first error is the one that counts
                self._sink.abandon()
            raise
        finally:
            self._side_logs.close()
            self._sink.close()
            self._state.close()
            self._connection.close()

    def _round(self) -> None:
        busy = bool(self._in_flight) or self._sink.busy
        limit = self._settings.max_batch_rows
        with self._timed("read"):
            polled = self._source.poll(limit, _BUSY_WAIT_S if busy else _IDLE_WAIT_S)
        segment = None
        if polled is not None:
            self._metrics.consumed.inc(len(polled))
            with self._timed("decode"):
                segment = read_segment(polled, self._clock_ms())
        self._take(segment)
        self._write_answered()
        self._commits.advance(caught_up=polled is None or len(polled) < limit)
        self._keep_up()

    def _take(self, segment: Segment | None) -> None:
        """Process the new segment, or as much of it and of those held as is due."""
        held = self._aligner.held_messages
        ready = self._aligner.offer(segment)
        self._make_known(ready)
        for part in ready:
            self._process(part)
        if held or self._aligner.held_messages:
            held = self._aligner.held_messages
            self._metrics.held.set(held)
            full = held >= MAX_HELD_MESSAGES
            self._source.pause_only(self._aligner.held_partitions if full else set())

    def _make_known(self, ready: list[Segment]) -> None:
        """Make sure that the terminals' windows of these rows are complete; see `alignment`."""
        newest_ms = max((part.last_ms for part in ready if len(part)), default=0)
        if newest_ms < self._known_until_ms or newest_ms == 0:
            return
        self._settle()
        slowest_ms = self._aligner.slowest_ms(ready)
        clock_ms = self._aligner.stream_clock_ms
        with self._timed("side_logs"):
            self._side_logs.catch_up(self._state.engine, clock_ms)
        complete_ms = clock_ms if slowest_ms is None else min(slowest_ms, clock_ms)
        self._known_until_ms = window_limit_ms(complete_ms, self._label_delay_ms)

    def _process(self, segment: Segment) -> None:
        """Move the state by the segment's rows and send those to Triton that need a score."""
        transactions = segment.decoded.transactions
        positions = segment.positions
        with self._timed("load"):
            self._state.load(transactions.customer_key)
        with self._timed("features"):
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
        with self._timed("submit"):
            pending = self._scorer.submit(chosen) if len(rows) else None
        self._in_flight.append(
            _InFlight(segment, rows, chosen, hashes[rows], forwarded, counted, pending)
        )
        self._processed |= segment.polled.end_offsets()
        self._metrics.replayed.inc(int((~live).sum()))
        self._metrics.duplicates.inc(int(repeated.sum()))
        self._metrics.late.inc(int((live & (flags & LATE != 0)).sum()))
        if len(rows):
            self._metrics.batch_rows.observe(len(rows))
        while len(self._in_flight) > self._settings.max_in_flight:
            self._write_first()

    def _write_answered(self) -> None:
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
        if batch.pending is not None:
            with self._timed("wait_scores"):
                scores, refused = self._scorer.result(batch.pending, batch.features)
        with self._timed("wait_commit"):
            self._commits.settle()
        with self._timed("write"):
            if batch.pending is not None:
                self._outputs.write_scored(batch.segment, batch.rows, scores, batch.hashes, refused)
            self._outputs.write_forwarded(batch.segment, batch.forwarded)
            self._outputs.write_bad(batch.segment, self._first_live)
            transactions = batch.segment.decoded.transactions
            self._sink.count(
                transactions.terminal_key[batch.counted], transactions.event_time_ms[batch.counted]
            )
        self._in_flight.popleft()
        self._commits.note_written(batch.segment.polled.end_offsets())

    def _settle(self) -> None:
        """Write and commit everything that is processed."""
        while self._in_flight:
            self._write_first()
        with self._timed("wait_commit"):
            self._commits.commit_all()

    def _keep_up(self) -> None:
        """Read the side logs and write snapshots, each as often as it needs."""
        now_s = time.monotonic()
        if now_s - self._side_logs_read_s >= _SIDE_LOG_EVERY_S:
            self._side_logs_read_s = now_s
            with self._timed("side_logs"):
                self._side_logs.read()
                self._side_logs.apply_due(self._state.engine, self._aligner.stream_clock_ms)
        if now_s - self._flushed_s >= self._settings.state_flush_interval_ms / 1000:
            self._flushed_s = now_s
            with self._timed("snapshot"):
                self._state.snapshot(self._processed, self._side_logs.applied)
            self._state.report(self._metrics)
        try:
            self._state.write_if_committed(self._commits.committed)
        except StateStoreError as error:
            _log.warning("%s The next attempt follows.", error)

    def _hand_over(self) -> None:
        """Commit and store everything, so that whoever comes next finds it."""
        if self._plan:
            self._settle()
            self._state.flush(self._commits.committed, self._side_logs.applied)

    def _assigned(self, committed: dict[int, int]) -> dict[int, Assignment]:
        self._plan = self._state.plan(committed)
        self._commits.restart(self._plan)
        self._processed = {p: a.start for p, a in self._plan.items()}
        self._first_live = np.zeros(max(self._plan, default=0) + 1, dtype=np.int64)
        for p, assignment in self._plan.items():
            self._first_live[p] = assignment.committed
        self._known_until_ms = 0
        return self._plan

    def _revoked(self) -> None:
        self._hand_over()
        self._let_go()

    def _lost(self) -> None:
        """Drop everything: somebody else goes on from the last commit."""
        self._in_flight.clear()
        self._sink.abandon()
        self._let_go()

    def _let_go(self) -> None:
        self._plan = {}
        self._aligner.forget()
        self._state.forget_customers()

    def _refuse_label(self, message: Message, error: BadMessageError) -> None:
        self._sink.dead_letter(
            message.value() or b"",
            topic=message.topic(),
            place=(message.partition(), message.offset()),
            error=error,
        )
        self._metrics.dead_lettered.inc()

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._metrics.stage_s.labels(stage).inc(time.perf_counter() - start_s)
