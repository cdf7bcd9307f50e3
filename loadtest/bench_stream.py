"""`stream-prefilled`: decisions per second from a topic that is full before the streamer starts.

Beside it, in the same run, its ceilings: consuming alone, Triton alone, producing alone. What it
does not show: latency, several streamers, brokers and Triton on machines of their own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.features import FEATURE_NAMES
from flagger.kafka import client_config
from flagger.models import live_version
from flagger.settings import Settings
from flagger.triton import ModelName, PendingScores, Scorer
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import BenchStreamer, count_records, own_outputs
from loadtest.observe import metric_values, wait_for_decided
from loadtest.processes import wait_for_url
from loadtest.usage import CpuClock
from streamer.produce import ReplayProducer
from streamer.topics import ensure_topics

__all__ = ["bench_stream"]

SCENARIO = "stream-prefilled"
_BATCH_ROWS = 4_096
_IN_FLIGHT = 4
_STALLED_S = 30.0


def _consume_only(settings: Settings, topic: str, expected: int) -> float:
    """Return messages per second that a consumer hands over when nobody looks at them."""
    consumer = Consumer(
        client_config(settings)
        | {
            "group.id": "bench-consume-only",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "queued.min.messages": 100_000,
            "fetch.queue.backoff.ms": 10,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
        consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
        count = len(consumer.consume(1, 30))
        start_s = last_s = time.perf_counter()
        while count < expected:
            got = len(consumer.consume(_BATCH_ROWS, 0.05))
            count += got
            if got:
                last_s = time.perf_counter()
            elif time.perf_counter() - last_s > _STALLED_S:
                raise StackError(f"Kafka sent {count:,} of {expected:,} messages of {topic}.")
        return count / (last_s - start_s)
    finally:
        consumer.close()


def _triton_only(settings: Settings, model: ModelName, rows: int) -> float:
    """Return rows per second that Triton scores, pipelined as the streamer does."""
    scorer = Scorer(settings.triton_url or "", timeout_ms=settings.triton_timeout_ms)
    batch = np.random.default_rng(0).random((_BATCH_ROWS, len(FEATURE_NAMES)), dtype=np.float32)
    scorer.score(batch, model)
    pending: deque[PendingScores] = deque()
    start_s = time.perf_counter()
    for _ in range(rows // _BATCH_ROWS):
        pending.append(scorer.submit(batch, model))
        if len(pending) > _IN_FLIGHT:
            pending.popleft().result(30)
    while pending:
        pending.popleft().result(30)
    rate = rows // _BATCH_ROWS * _BATCH_ROWS / (time.perf_counter() - start_s)
    scorer.close()
    return rate


def bench_stream(
    table: pa.Table,
    repository: Path,
    out: Path,
    *,
    repeats: int,
    on_step: Callable[[str], None],
) -> BenchResult:
    """Run the scenario on a fresh embedded stack; each run is a new group with empty state.

    Args:
        table: Transactions in event-time order.
        repository: Model repository with a live version.
        out: Folder for the stack and the logs.
        repeats: Runs of the streamer.
        on_step: Told what happens now.

    Raises:
        StackError: A part failed, or decisions are missing.
    """
    n = table.num_rows
    result = BenchResult(SCENARIO, {"transactions": n, "partitions": 4, "triton_instances": 1})
    out.mkdir(parents=True, exist_ok=True)
    with LocalStack(out / "stack", model_repository=repository, fresh=True) as stack:
        base = Settings(
            kafka_bootstrap_servers=stack.addresses.kafka_bootstrap_servers,
            triton_url=stack.addresses.triton_url,
            valkey_url=stack.addresses.valkey_url,
            model_repository=repository,
        )
        ensure_topics(base)
        on_step("fill the topic")
        producer = ReplayProducer(base)
        start_s = time.perf_counter()
        producer.run(table.to_batches())
        result.add("produce only", n / (time.perf_counter() - start_s), "tx/s")
        producer.close()
        model = ModelName(base.streamer_model, live_version(repository))
        for run in range(repeats):
            on_step(f"run {run + 1} of {repeats}: ceilings")
            result.add("consume only", _consume_only(base, base.transactions_topic, n), "tx/s")
            result.add("Triton only", _triton_only(base, model, n), "rows/s")
            on_step(f"run {run + 1} of {repeats}: stream")
            _stream_once(base, run, n, out, result)
    return result


def _stream_once(base: Settings, run: int, n: int, out: Path, result: BenchResult) -> None:
    settings = own_outputs(base, f"bench-{run}", database=run % 16)
    with BenchStreamer(settings, out / f"stream-{run}.log") as streamer:
        metrics, process = streamer.metrics_url, streamer.process
        wait_for_url(metrics, process)
        clock = CpuClock({"streamer": process.pid})
        seen = wait_for_decided(metrics, process, n)
        cpu_s = clock.used_s()["streamer"]
        stages = metric_values(metrics, "flagger_streamer_stage_seconds_total", "stage")
        process.stop()
    written = count_records(settings, settings.decisions_topic)
    if written != n:
        raise StackError(f"{n:,} transactions have {written:,} decisions.")
    (start_s, first), (end_s, last) = seen[0], seen[-1]
    result.add("stream", (last - first) / (end_s - start_s), "tx/s")
    result.add("streamer's CPU", cpu_s / n * 1e6, "µs per tx")
    for stage, seconds in sorted(stages.items()):
        result.add(f"stage {stage}", seconds / n * 1e6, "µs per tx")
