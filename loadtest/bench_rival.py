"""`rival-per-message`: our streamer against one HTTP request per message, in the same run.

The rival has the usual shape: a consumer takes one message, asks a FastAPI and XGBoost service for
the score of one row through pandas, writes the decision, waits for the broker, commits the offset.
It is favoured: its feature rows are computed before the clock starts and lie in its memory as
finished request bodies, it keeps no state, promises at least once instead of exactly once, holds
one HTTP connection open, and uses the same Kafka client library as we do. Our streamer computes the
features, stores the state and writes transactions.

Each of the rival's commits waits for the broker's `group.coordinator.append.linger.ms` (5 ms unless
it is set), so its rate depends much on that. Both sides have the same broker, and what the rival's
commits take is among the figures.

Rates: both work off the same full topic; the rival only its first messages. Latency: both at the
same low rate, each alone, from the message's timestamp to a reader of committed messages. What it
does not show: rivals that batch, several rivals side by side, a network between the parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.models import ModelVersion, live_version, load_version, version_folder
from flagger.settings import Settings
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import BenchStreamer, own_outputs, own_topics, stream_backlog
from loadtest.observe import DecisionFollower, wait_for_decided
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.rival import Rival, request_bodies
from streamer.produce import Pace, ReplayProducer

__all__ = ["RivalPlan", "bench_rival"]

SCENARIO = "rival-per-message"
WARM_UP_MESSAGES = 100
_WAIT_S = 30.0
_READ_S = 1.0
"""After the last decision, so that the reader gets it."""
_POINTS = (50, 99)
_SPREAD = 8
"""The rival's first messages are among so many times as many rows, whatever partition is first."""


@dataclass(frozen=True)
class RivalPlan:
    """What to run.

    Attributes:
        messages: That the rival's rate is measured over.
        rate_per_s: Of the latency measurement; the rival must keep up.
        warm_up_s: At that rate, not measured.
        measured_s: At that rate.
    """

    messages: int = 1_000
    rate_per_s: float = 20.0
    warm_up_s: float = 3.0
    measured_s: float = 25.0

    @property
    def rows(self) -> int:
        """Rows of the table that the rival may meet."""
        return max(_SPREAD * (self.messages + WARM_UP_MESSAGES), self.paced_rows)

    @property
    def paced_rows(self) -> int:
        """Rows that are sent at the low rate."""
        return int(self.rate_per_s * (self.warm_up_s + self.measured_s))


@contextmanager
def _service(settings: Settings, version: str, log: Path) -> Iterator[int]:
    """Run the rival's model server; gives its port."""
    (port,) = free_ports(1)
    model_file = version_folder(settings.model_repository, version) / "xgboost.json"
    process = FlaggerProcess(
        [str(model_file), "--port", str(port)],
        environment_of(settings),
        log,
        module="loadtest.rival_service",
    )
    try:
        wait_for_url(f"http://127.0.0.1:{port}/ready", process)
        yield port
    finally:
        process.kill()


@dataclass(frozen=True)
class _Contest:
    """What both sides share in all runs."""

    plan: RivalPlan
    base: Settings
    table: pa.Table
    model: ModelVersion
    bodies: dict[str, bytes]
    out: Path
    result: BenchResult

    def rates(self, run: int, port: int) -> None:
        """Measure both sides' rates on the full topic."""
        plan, result = self.plan, self.result
        theirs = own_outputs(self.base, f"{SCENARIO}-rival-{run}", database=0)
        with Rival(theirs, self.model, port, self.bodies) as rival:
            rival.run(WARM_UP_MESSAGES)
            rival.call_ms.clear()
            rival.commit_ms.clear()
            start_s = time.perf_counter()
            rival.run(plan.messages)
            rival_per_s = plan.messages / (time.perf_counter() - start_s)
        result.add("rival", rival_per_s, "tx/s")
        for point in _POINTS:
            for name, taken_ms in (("HTTP call", rival.call_ms), ("commit", rival.commit_ms)):
                value = float(np.percentile(taken_ms, point))
                result.add(f"rival's {name} p{point}", value, "ms")
        ours = own_outputs(self.base, f"{SCENARIO}-stream-{run}", database=2 * run)
        stream_per_s = stream_backlog(ours, self.table.num_rows, self.out / f"stream-{run}.log")
        result.add("stream", stream_per_s, "tx/s")
        result.add("stream / rival", stream_per_s / rival_per_s, "times")

    def latencies(self, run: int, port: int) -> None:
        """Measure both sides' latencies at the low rate, one after the other."""
        name = f"{SCENARIO}-slow"
        theirs = own_outputs(
            own_topics(self.base, f"{name}-rival-{run}"), f"{name}-rival-{run}", database=0
        )
        with Rival(theirs, self.model, port, self.bodies) as rival, ThreadPoolExecutor(1) as pool:
            rows = self.table.slice(0, self.plan.paced_rows)
            deciding = pool.submit(rival.run, rows.num_rows)
            rival_ms = self._paced(theirs, rows, lambda: deciding.result(_WAIT_S))
        ours = own_outputs(
            own_topics(self.base, f"{name}-stream-{run}"),
            f"{name}-stream-{run}",
            database=2 * run + 1,
        )
        with BenchStreamer(ours, self.out / f"slow-{run}.log") as streamer:
            url, process = streamer.metrics_url, streamer.process
            wait_for_url(url, process)
            stream_ms = self._paced(
                ours, rows, lambda: wait_for_decided(url, process, rows.num_rows)
            )
            process.stop()
        for point in _POINTS:
            before, after = np.percentile(rival_ms, point), np.percentile(stream_ms, point)
            at = f"p{point} at {self.plan.rate_per_s:.0f}/s"
            self.result.add(f"rival, event to decision {at}", float(before), "ms")
            self.result.add(f"stream, event to decision {at}", float(after), "ms")
            self.result.add(f"change of {at}", float(after / before - 1) * 100, "%")

    def _paced(
        self, settings: Settings, rows: pa.Table, wait_for_end: Callable[[], Any]
    ) -> npt.NDArray[np.float64]:
        """Send at the low rate; return milliseconds to the decisions after the warm-up."""
        plan = self.plan
        producer = ReplayProducer(settings, with_labels=False)
        try:
            with DecisionFollower(settings) as follower:
                start_ms = time.time() * 1000
                producer.run(rows.to_batches(), Pace(plan.rate_per_s))
                wait_for_end()
                time.sleep(_READ_S)
        finally:
            producer.close()
        records = follower.records
        if len(records) != rows.num_rows:
            raise StackError(f"{rows.num_rows:,} transactions have {len(records):,} decisions.")
        measured = records.timestamp_ms >= start_ms + plan.warm_up_s * 1000
        return (records.read_ms - records.timestamp_ms)[measured]


def bench_rival(
    table: pa.Table,
    plan: RivalPlan,
    repository: Path,
    out: Path,
    *,
    repeats: int,
    on_step: Callable[[str], None],
    servers: Settings | None = None,
) -> BenchResult:
    """Run the scenario on a fresh embedded stack.

    Args:
        table: Transactions in event-time order.
        plan: Sizes and rates of the rival.
        repository: Model repository with a live version.
        out: Folder for the stack and the logs.
        repeats: Runs of each side.
        on_step: Told what happens now.
        servers: Addresses of servers that run already; those are not started.

    Raises:
        StackError: A part failed, or decisions are missing.
    """
    result = BenchResult(
        SCENARIO,
        {
            "transactions": table.num_rows,
            "rival_messages": plan.messages,
            "rate_per_s": plan.rate_per_s,
            "partitions": 4,
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    with LocalStack(
        out / "stack", model_repository=repository, settings=servers, fresh=True
    ) as stack:
        base = own_topics(stack.settings(), SCENARIO)
        model = load_version(repository, live_version(repository))
        on_step("fill the topic, make the rival's feature rows")
        producer = ReplayProducer(base)
        producer.run(table.to_batches())
        producer.close()
        bodies = request_bodies(table.slice(0, plan.rows), model)
        contest = _Contest(plan, base, table, model, bodies, out, result)
        with _service(base, model.version, out / "rival.log") as port:
            for run in range(repeats):
                on_step(f"run {run + 1} of {repeats}: rates")
                contest.rates(run, port)
                on_step(f"run {run + 1} of {repeats}: latencies")
                contest.latencies(run, port)
    return result
