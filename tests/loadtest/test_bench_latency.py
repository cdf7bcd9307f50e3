"""The latency benchmark, short, on a stack of its own."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from confluent_kafka.admin import AdminClient

from deploy.local.stack import LocalStack
from flagger.kafka import client_config
from flagger.settings import Settings
from loadtest import bench_latency as scenario
from loadtest.bench_latency import bench_latency, latency_scenario
from train.simulate import SimulationConfig, simulate


def test_only_the_usual_number_of_partitions_has_the_plain_id() -> None:
    assert latency_scenario(5_000, 4) == "latency-5000"
    assert latency_scenario(5_000, 1) == "latency-5000-partitions-1"


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_a_short_run_reads_every_decision_of_the_wanted_partitions(
    stack: LocalStack, servers: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenario, "WARM_UP_S", 1.0)
    monkeypatch.setattr(scenario, "MEASURED_S", 1.0)
    size = SimulationConfig(customers=200, terminals=80, days=10, start=date(2026, 1, 1), seed=5)
    result = bench_latency(
        pa.Table.from_batches(simulate(size)),
        stack.model_repository,
        tmp_path,
        rate_per_s=250,
        partitions=2,
        repeats=2,
        on_step=lambda _: None,
        servers=servers,
    )
    assert result.scenario == "latency-250-partitions-2"
    assert result.settings == {"rate_per_s": 250, "partitions": 2}
    assert result.runs["decisions read"] == [250, 250]
    p50, p99 = (result.runs[f"event to decision p{point}"] for point in (50, 99))
    assert all(0 < low <= high < 5_000 for low, high in zip(p50, p99, strict=True))
    # The floor is measured with as many partitions.
    assert 0 < result.median("bare transaction, commit p50") < 1_000
    transactions = AdminClient(client_config(servers)).list_topics(
        "latency-250-partitions-2-transactions", timeout=10
    )
    assert len(transactions.topics["latency-250-partitions-2-transactions"].partitions) == 2
    # Whose processes it knows: here Kafka and Triton are others'.
    used = [result.median(f"CPU {part}") for part in ("streamer", "valkey", "producer and reader")]
    assert 0 < sum(used) <= (os.cpu_count() or 1)
    assert 0 < result.median("commits") <= 250
