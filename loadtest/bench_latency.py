"""`latency-<rate>`: from a transaction's production to its decision at a read-committed reader.

One streamer, a constant rate, and before it the floor: bare transactions on the same broker,
without a streamer. With another number of partitions than the usual four it is a scenario of its
own, `latency-<rate>-partitions-<n>`: the client library sends one request for each partition
(librdkafka #1700), and the broker pays by the request.

What is sent in the first seconds only warms up: the JVM compiles, the state fills. Beside the
times: the cores that each part keeps busy while transactions are sent, and the commits a second.
What it does not show: a network between the parts, and other load on the broker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from deploy.local.stack import LocalStack
from flagger.settings import Settings
from loadtest.bare_transaction import measure_bare_transactions
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import BenchStreamer, own_topics
from loadtest.observe import DecisionFollower, wait_for_decided
from loadtest.processes import wait_for_url
from loadtest.usage import CpuClock
from streamer.produce import Pace, ReplayProducer

__all__ = ["PARTITIONS", "bench_latency", "latency_scenario"]

PARTITIONS = 4
"""Of the transactions topic in the plain scenario."""

WARM_UP_S = 15.0
MEASURED_S = 10.0
_POINTS = (50, 95, 99)


def latency_scenario(rate_per_s: float, partitions: int) -> str:
    """Return the scenario's id."""
    suffix = "" if partitions == PARTITIONS else f"-partitions-{partitions}"
    return f"latency-{rate_per_s:.0f}{suffix}"


def bench_latency(
    table: pa.Table,
    repository: Path,
    out: Path,
    *,
    rate_per_s: float,
    partitions: int,
    repeats: int,
    on_step: Callable[[str], None],
    servers: Settings | None = None,
) -> BenchResult:
    """Run the scenario; each repeat goes on where the last one ended.

    Args:
        table: Transactions in event-time order; enough for the rate and the time.
        repository: Model repository with a live version.
        out: Folder for the stack and the logs.
        rate_per_s: Transactions per second.
        partitions: Of the transactions topic.
        repeats: How often to measure.
        on_step: Told what happens now.
        servers: Addresses of servers to use in place of those that would be started.
    """
    scenario = latency_scenario(rate_per_s, partitions)
    result = BenchResult(scenario, {"rate_per_s": rate_per_s, "partitions": partitions})
    out.mkdir(parents=True, exist_ok=True)
    with LocalStack(
        out / "stack", model_repository=repository, settings=servers, fresh=True
    ) as stack:
        settings = own_topics(stack.settings(Settings(partitions=partitions)), scenario)
        on_step("bare transactions")
        _measure_floor(settings, result)
        producer, sent = ReplayProducer(settings), 0
        try:
            with BenchStreamer(settings, out / "stream.log") as streamer:
                wait_for_url(streamer.metrics_url, streamer.process)
                for run in range(repeats + 1):
                    on_step(f"run {run} of {repeats}" if run else "warm up")
                    rows = table.slice(sent, int(rate_per_s * (MEASURED_S if run else WARM_UP_S)))
                    sent += rows.num_rows
                    into = result if run else BenchResult("warm up", {})
                    _measure_run(rows, rate_per_s, sent, producer, streamer, stack.pids, into)
                streamer.process.stop()
        finally:
            producer.close()
    return result


def _measure_floor(settings: Settings, result: BenchResult) -> None:
    bare = measure_bare_transactions(settings)
    for name, values_ms in (("commit", bare.commit_ms), ("produced to read", bare.read_ms)):
        for point in (50, 99):
            value = float(np.percentile(values_ms, point))
            result.add(f"bare transaction, {name} p{point}", value, "ms")


def _measure_run(
    rows: pa.Table, rate_per_s: float, decided: int, producer: ReplayProducer,
    streamer: BenchStreamer, servers: dict[str, int], result: BenchResult,
) -> None:  # fmt: skip
    """Send rows at the rate, wait until there are so many decisions in all, add the figures."""
    parts = {**servers, "streamer": streamer.process.pid, "producer and reader": os.getpid()}
    with DecisionFollower(streamer.settings) as follower:
        clock, commits, start_s = CpuClock(parts), _commits(streamer), time.monotonic()
        producer.run(rows.to_batches(), Pace(rate_per_s))
        commits_per_s = (_commits(streamer) - commits) / (time.monotonic() - start_s)
        cores = clock.cores()
        wait_for_decided(streamer.metrics_url, streamer.process, decided)
        time.sleep(1)  # the last commit reaches the follower
    records = follower.records
    latencies_ms = records.read_ms - records.timestamp_ms
    for point in _POINTS:
        value = float(np.percentile(latencies_ms, point))
        result.add(f"event to decision p{point}", value, "ms")
    result.add("decisions read", len(records), "")
    result.add("commits", commits_per_s, "per second")
    for part, busy in cores.items():
        result.add(f"CPU {part}", busy, "cores")


def _commits(streamer: BenchStreamer) -> float:
    return streamer.metric("commit_seconds_count")
