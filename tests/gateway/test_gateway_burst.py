"""200 parallel payments of one customer over two gateways, with a streamer behind them."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from confluent_kafka import Consumer

from deploy.local.server import free_ports
from flagger.features.hashing import key_of
from flagger.state.store import StateStore
from flagger.wire.messages import Decision, Transaction
from loadtest.observe import wait_for_decided
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack
BURST = 200


def read_topic(servers: str, topic: str, kind: Any, count: int) -> list[Any]:
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    found: list[Any] = []
    end_s = time.monotonic() + 30
    quiet_s = 2.0
    last_s = time.monotonic()
    while time.monotonic() < end_s:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            found.append(msgspec.json.decode(message.value(), type=kind))
            last_s = time.monotonic()
        elif len(found) >= count and time.monotonic() - last_s > quiet_s:
            break
    consumer.close()
    return found


def test_burst_over_two_gateways_is_counted_in_full(
    stack: Any, published: tuple[Path, str], tmp_path: Path
) -> None:
    run = uuid.uuid4().hex[:12]
    settings = stack.settings().model_copy(
        update=own_topic_names(run) | {"consumer_group": run, "model_repository": published[0]}
    )
    ensure_topics(settings)
    environment = environment_of(
        settings,
        {
            "FLAGGER_GATEWAY_AUTH": "off",
            "FLAGGER_GATEWAY_DRAIN_MS": "0",
            "FLAGGER_GATEWAY_DEADLINE_MS": "5000",
            "FLAGGER_GATEWAY_MAX_IN_FLIGHT": str(BURST),
            "FLAGGER_EXPLAIN_TIMEOUT_MS": "0",
        },
    )
    ports = free_ports(3)
    metrics = f"http://127.0.0.1:{ports[2]}/metrics"
    processes = [
        FlaggerProcess(["gateway", "--port", str(port)], environment, tmp_path / f"g{port}.log")
        for port in ports[:2]
    ]
    streamer = FlaggerProcess(
        ["stream", "--metrics-port", str(ports[2])], environment, tmp_path / "s.log"
    )
    processes.append(streamer)
    try:
        wait_for_url(metrics, streamer)
        for port, process in zip(ports[:2], processes[:2], strict=True):
            wait_for_url(f"http://127.0.0.1:{port}/readyz", process)
        now_ms = time.time_ns() // 1_000_000

        def send(i: int) -> httpx.Response:
            sent = {
                "transaction_id": f"{run}-{i}",
                "event_time": now_ms,
                "customer_id": f"c-{run}",
                "terminal_id": f"m-{i % 3}",
                "amount": 1.0,
            }
            url = f"http://127.0.0.1:{ports[i % 2]}/v1/score"
            return httpx.post(url, json=sent, timeout=20)

        with ThreadPoolExecutor(40) as pool:
            answers = list(pool.map(send, range(BURST)))
        assert {a.status_code for a in answers} == {200}
        assert {a.json()["decision_source"] for a in answers} == {"model"}
        wait_for_decided(metrics, streamer, BURST)
        time.sleep(2.5)  # the state is written about every second
    finally:
        for process in processes:
            process.kill()

    servers = stack.addresses.kafka_bootstrap_servers
    logged = read_topic(servers, settings.transactions_topic, Transaction, BURST)
    decided = read_topic(servers, settings.decisions_topic, Decision, BURST)
    told = {a.json()["transaction_id"]: a.json() for a in answers}
    assert len(logged) == len(decided) == len(told) == BURST
    # Rows differ only by how many came before: equal ones would be a count that was seen twice.
    assert len({d.feature_hash for d in decided}) == BURST
    for decision in decided:
        answer = told[decision.transaction_id]
        assert (decision.score, decision.decision) == (answer["score"], answer["decision"])
    assert {t.transaction_id for t in logged} == told.keys()
    store = StateStore(stack.addresses.valkey_url)
    (record,) = store.read("customer", np.array([key_of(f"c-{run}")], dtype=np.uint64))
    assert record["count"] == BURST
    store.close()
