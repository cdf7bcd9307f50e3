"""The streamer's loop: poll, align, compute features, ask Triton, decide, commit.

One thread owns the state and runs the loop. Three things overlap with it: Triton's answers, the
Kafka commit, and the writing of state to the store. Batches are whatever has arrived while the
loop was busy: small when the load is low, up to `max_batch_rows` when it is high.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

from flagger.errors import StackError, StateStoreError
from flagger.live import LiveModel
from flagger.live_rulebook import LiveRulebook
from flagger.models import ModelVersion
from flagger.settings import Settings
from flagger.state.store import StateStore
from flagger.triton import ModelName, Scorer
from streamer.alignment import Aligner, window_limit_ms
from streamer.batches import Batches
from streamer.commits import Commits
from streamer.health import Health
from streamer.hot_state import HotState
from streamer.metrics import StreamerMetrics
from streamer.outputs import OutputWriter
from streamer.scoring import PatientScorer
from streamer.segments import Segment, read_segment
from streamer.side_logs import SideLogs
from streamer.sink import DecisionSink
from streamer.source import Assignment, TransactionSource
from streamer.tried import TriedModels
from streamer.verdicts import Judge

__all__ = ["Pipeline"]

MAX_HELD_MESSAGES = 200_000
"""At this many messages that wait for slower partitions, their partitions are paused."""
_IDLE_WAIT_S = 0.02
_BUSY_WAIT_S = 0.001
_ANSWER_WAIT_S = 0.01
"""How long to wait for Triton before more messages are looked for, where there is no backlog. It
answers in 2 to 5 ms, and what is decided goes out at once. Behind a slower one batches queue."""
_SIDE_LOG_EVERY_S = 0.05
_log = logging.getLogger(__name__)


class Pipeline:
    """One streamer.

    Args:
        settings: With all addresses filled in.
        model: The live version.
        metrics: Where to count.
        keep_going: Asked in every round; False ends `run` after everything processed is committed.
        health: Told what the streamer waits for.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        model: ModelVersion,
        metrics: StreamerMetrics,
        *,
        keep_going: Callable[[], bool],
        health: Health | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._keep_going = keep_going
        self._clock_ms = clock_ms
        self._health = health or Health()
        metrics.show_waiting(self._health)
        falls_back = settings.streamer_fallback == "rules"
        self._connection = Scorer(settings.triton_url or "", timeout_ms=settings.triton_timeout_ms)
        self._scorer = PatientScorer(
            self._connection,
            ModelName(settings.streamer_model, model.version),
            timeout_ms=settings.triton_timeout_ms,
            keep_going=keep_going,
            on_error=lambda kind: metrics.model_errors.labels(kind).inc(),
            before_waiting=self._before_waiting,
            health=self._health,
            patience_ms=settings.streamer_fallback_after_ms if falls_back else None,
        )
        brakes = metrics.brakes_of(settings)
        self._judge = Judge(model, self._connection, settings, metrics.unexplained.inc, brakes)
        self._state = HotState(model.contract, StateStore(settings.valkey_url or ""), settings)
        self._sink = DecisionSink(settings)
        self._side_logs = SideLogs(
            settings, self._state.side_marks, clock_ms=clock_ms, on_removed=metrics.note_removed
        )
        self._source = TransactionSource(
            settings,
            on_assign=self._assigned,
            on_revoke=self._revoked,
            on_lost=self._lost,
            on_removed=metrics.note_removed,
        )
        self._commits = Commits(
            self._sink, self._source, metrics, interval_ms=settings.latency_target_ms / 2
        )
        self._aligner = Aligner(
            model.contract.label_delay_ms, self._source.unfinished, self._source.others_slowest_ms
        )
        self._tried = TriedModels(model, self._connection, settings, metrics)
        self._rulebook = LiveRulebook(settings.rulebook)
        metrics.show_rulebook(self._rulebook)
        self._outputs = OutputWriter(self._sink, model, settings, metrics, clock_ms)
        self._batches = Batches(
            self._state,
            self._scorer,
            self._judge,
            self._sink,
            self._outputs,
            self._commits,
            metrics,
            max_in_flight=settings.max_in_flight,
            store_all=self._store_all,
            falls_back=falls_back,
            clock_ms=clock_ms,
            rulebook=self._rulebook,
            tried=self._tried,
        )
        self._live_model = LiveModel(settings.model_repository, model, self._tried.check)
        self._plan: dict[int, Assignment] = {}
        self._known_until_ms = 0
        self._flushed_s = self._side_logs_read_s = time.monotonic()

    def run(self) -> None:
        """Stream until `keep_going` says no; what was processed is then committed and stored."""
        try:
            while self._keep_going():
                self._round()
            self._hand_over()
        except BaseException:
            with suppress(Exception):  # the first error is the one that counts
                self._lost()
            raise
        finally:
            self._source.close()
            self._side_logs.close()
            self._sink.close()
            self._outputs.close()
            self._tried.close()
            self._state.close()
            self._connection.close()

    def _round(self) -> None:
        self._health.came_round()
        committing = self._sink.committing
        wait_s = _BUSY_WAIT_S if committing or len(self._batches) else _IDLE_WAIT_S
        limit = self._settings.max_batch_rows
        with self._metrics.timed("read"):
            polled = self._source.poll(limit, wait_s, self._commits.linger_s)
        segment = None
        if polled is not None:
            self._metrics.consumed.inc(len(polled))
            with self._metrics.timed("decode"):
                segment = read_segment(polled, self._clock_ms())
        caught_up = polled is None or len(polled) < limit
        self._take(segment)
        if caught_up:
            self._batches.write_within(_ANSWER_WAIT_S)
        else:
            self._batches.write_answered()
        self._commits.advance(caught_up=caught_up)
        self._keep_up()
        if (successor := self._live_model.successor()) is not None:
            self._switch(successor)
        if (trials := self._tried.changed()) is not None:
            self._settle()
            self._tried.apply(trials)
        if (growth := self._source.growth()) is not None:
            self._hand_over()  # customers have moved: others need their records now
            raise StackError(growth)

    def _take(self, segment: Segment | None) -> None:
        """Process the new segment, or as much of it and of those held as is due."""
        held = self._aligner.held_messages
        ready = self._aligner.offer(segment)
        self._make_known(ready)
        if ready:  # what has been read and was too far ahead may be due now
            self._side_logs.apply_due(self._state.engine, self._aligner.stream_clock_ms)
        for part in ready:
            self._batches.process(part)
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
        with self._metrics.timed("side_logs"):
            self._side_logs.catch_up(self._state.engine, clock_ms)
        complete_ms = clock_ms if slowest_ms is None else min(slowest_ms, clock_ms)
        self._known_until_ms = window_limit_ms(complete_ms, self._aligner.label_delay_ms)

    def _settle(self) -> None:
        """Write and commit everything that is processed."""
        self._batches.write_all()
        refused = self._side_logs.refused if self._state.writes_terminals else []
        self._outputs.write_refused_entries(refused)
        with self._metrics.timed("wait_commit"):
            self._commits.commit_all()
        refused.clear()

    def _keep_up(self) -> None:
        """Read the side logs, lists and rules, and write state, each as often as it needs."""
        self._rulebook.refresh()
        now_s = time.monotonic()
        due = False
        if now_s - self._side_logs_read_s >= _SIDE_LOG_EVERY_S:
            self._side_logs_read_s = now_s
            with self._metrics.timed("side_logs"):
                self._side_logs.read()
                self._side_logs.apply_due(self._state.engine, self._aligner.stream_clock_ms)
            due = self._state.has_much_to_write
        if self._side_logs.refused:  # before the marks say that it has been read
            if self._state.writes_terminals:
                self._settle()
            else:
                self._side_logs.forget_refused()
        if due or now_s - self._flushed_s >= self._settings.state_flush_interval_ms / 1000:
            self._flushed_s = now_s
            self._state.begin_round(self._batches.processed, self._side_logs.marks)
            self._report()
        try:
            with self._metrics.timed("copy_state"):
                finished = self._state.advance(self._batches.processed, self._commits.committed)
            if finished:
                self._health.goes_on("valkey")
        except StateStoreError as error:
            if not self._health.is_waiting_for("valkey"):
                _log.warning("%s It is tried again until it succeeds.", error)
            self._health.waits("valkey", str(error))

    def _before_waiting(self) -> None:
        """Send out what is decided: while the model server is away no transaction may hang."""
        self._commits.commit_all()
        self._report()

    def _report(self) -> None:
        self._state.report(self._metrics)
        self._metrics.waiting_entries.set(self._side_logs.waiting_entries)
        lag = self._source.lag(self._commits.committed)
        clock_ms = self._aligner.stream_clock_ms
        behind_ms = self._clock_ms() - clock_ms if lag and clock_ms > 0 else 0
        self._metrics.lag.set(lag)
        self._metrics.cpu_wait_share.set(self._commits.cpu_wait_share)
        self._metrics.event_lag_s.set(max(behind_ms, 0) / 1000)

    def _switch(self, model: ModelVersion) -> None:
        """Go on with another model version; what was scored by the old one is written first."""
        self._settle()
        self._scorer.use(ModelName(self._settings.streamer_model, model.version))
        self._judge.use(model)
        self._outputs.use(model)
        self._tried.use(model)
        self._state.engine.use_contract(model.contract)
        self._aligner.label_delay_ms = model.contract.label_delay_ms
        self._known_until_ms = 0

    def _hand_over(self) -> None:
        """Commit and store everything, so that whoever comes next finds it."""
        if self._plan:
            self._store_all()

    def _store_all(self) -> None:
        """Commit and store everything that was processed."""
        self._settle()
        self._state.flush(self._batches.processed, self._side_logs.marks)

    def _assigned(self, committed: dict[int, int]) -> dict[int, Assignment]:
        self._plan = self._source.readable(self._state.plan(committed))
        self._side_logs.go_on_from(self._state.side_marks)
        if committed:
            self._health.goes_on("partitions")
        starts = {p: assignment.start for p, assignment in self._plan.items()}
        stored = self._state.side_marks
        _log.info("Reads %s; side logs: %s, stored: %s.", starts, self._side_logs.marks, stored)
        self._commits.restart(self._plan)
        self._batches.restart(self._plan)
        self._known_until_ms = 0
        return self._plan

    def _revoked(self) -> None:
        self._hand_over()
        self._let_go()

    def _lost(self) -> None:
        """Drop everything: somebody else goes on from the last commit."""
        try:
            self._sink.abandon()
        finally:  # or closing would hand over, and commit, what was abandoned
            self._let_go()

    def _let_go(self) -> None:
        self._plan = {}
        self._health.waits("partitions", "Kafka has taken the partitions away; others have them.")
        self._batches.restart({})
        self._aligner.forget()
        self._state.let_go()
