"""The gateway as a process on the real Kafka, Triton and Valkey: nothing is lost, one decision."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from flagger.wire.messages import Transaction
from tests.gateway.processes import Process, body, read_all

pytestmark = pytest.mark.stack


@pytest.fixture
def topic(stack: Any) -> Iterator[str]:
    """Make a transactions topic of this test's own."""
    admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
    name = f"transactions-{uuid.uuid4().hex}"
    admin.create_topics([NewTopic(name, num_partitions=4)])[name].result(30)
    yield name
    admin.delete_topics([name])[name].result(30)


@pytest.fixture
def start(
    stack: Any, published: tuple[Path, str], topic: str, tmp_path: Path
) -> Iterator[Callable[[], Process]]:
    """Return a function that starts a gateway; those still running are stopped at the end."""
    repository, _ = published
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FLAGGER_")} | {
        "FLAGGER_KAFKA_BOOTSTRAP_SERVERS": stack.addresses.kafka_bootstrap_servers,
        "FLAGGER_TRITON_URL": stack.addresses.triton_url,
        "FLAGGER_VALKEY_URL": stack.addresses.valkey_url,
        "FLAGGER_TRANSACTIONS_TOPIC": topic,
        "FLAGGER_MODEL_REPOSITORY": str(repository),
        "FLAGGER_GATEWAY_DEADLINE_MS": "1000",  # a busy build machine
        "FLAGGER_GATEWAY_AUTH": "off",
        "FLAGGER_GATEWAY_DRAIN_MS": "1000",
    }
    started: list[Process] = []

    def start_one() -> Process:
        started.append(Process(environment, tmp_path / f"gateway-{len(started)}.log"))
        return started[-1]

    yield start_one
    for process in started:
        if process._process.poll() is None:
            process.stop(signal.SIGKILL)


def test_decides_by_the_model_and_records_it_once(
    stack: Any, topic: str, start: Callable[[], Process]
) -> None:
    gateway = start()
    sent = body(uuid.uuid4().hex)
    first = gateway.client.post("/v1/score", json=sent)
    assert first.status_code == 200
    answer = first.json()
    assert answer["decision_source"] == "model"
    assert 0 <= answer["score"] <= 1
    second = gateway.client.post("/v1/score", json=sent)
    assert second.json() == answer
    assert second.headers["idempotent-replayed"] == "true"
    assert gateway.client.post("/v1/score", json=sent | {"amount": 1}).status_code == 409
    assert gateway.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
    (logged,) = read_all(stack, topic)
    assert logged.decision is not None
    assert logged.decision.decision == answer["decision"]
    assert logged.decision.score == answer["score"]
    assert logged.decision.model_version == answer["model_version"]


def test_killed_gateway_loses_nothing_and_decides_nothing_twice(
    stack: Any, topic: str, start: Callable[[], Process]
) -> None:
    run = uuid.uuid4().hex
    bodies = [body(f"{run}-{i}") for i in range(300)]
    gateway = start()
    answers: dict[str, float] = {}

    def send(process: Process, sent: dict[str, Any]) -> None:
        try:
            response = process.client.post("/v1/score", json=sent)
        except httpx.TransportError:
            return
        if response.status_code == 200:
            decided = response.json()["score"]
            assert answers.setdefault(sent["transaction_id"], decided) == decided

    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(send, gateway, sent) for sent in bodies]
        while len(answers) < 100:
            time.sleep(0.005)
        gateway._process.kill()
        for future in futures:
            future.result()
    assert 100 <= len(answers) < 300
    second = start()
    for sent in bodies:
        send(second, sent)
    assert len(answers) == 300
    second.stop(signal.SIGTERM)

    logged: dict[str, list[Transaction]] = defaultdict(list)
    for transaction in read_all(stack, topic):
        logged[transaction.transaction_id].append(transaction)
    assert logged.keys() == answers.keys()
    for transaction_id, copies in logged.items():
        scores = {copy.decision.score for copy in copies if copy.decision is not None}
        assert scores == {answers[transaction_id]}
    # Written twice are at most those that were under way when the process was killed.
    written_twice = {name for name, copies in logged.items() if len(copies) > 1}
    assert len(written_twice) <= 8


def test_stopping_answers_what_is_under_way(
    stack: Any, topic: str, start: Callable[[], Process]
) -> None:
    gateway = start()
    answered: set[str] = set()
    run = uuid.uuid4().hex

    def send(transaction_id: str) -> None:
        try:
            response = gateway.client.post("/v1/score", json=body(transaction_id))
        except httpx.TransportError:
            return  # came after the stop: the caller's balancer sends it elsewhere
        assert response.status_code == 200
        answered.add(transaction_id)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(send, f"{run}-{i}") for i in range(100)]
        while len(answered) < 20:
            time.sleep(0.005)
        gateway._process.send_signal(signal.SIGTERM)
        for future in futures:
            future.result()
    gateway._process.wait(20)
    # Whatever was begun was answered: the log holds nothing else.
    assert {t.transaction_id for t in read_all(stack, topic)} == answered


def test_leaving_gateway_drops_no_request(
    stack: Any, topic: str, start: Callable[[], Process]
) -> None:
    """Callers who reconnect elsewhere once they are told so see no failure at all."""
    leaving, staying = start(), start()
    run = uuid.uuid4().hex
    statuses: list[int] = []
    told = threading.Event()
    stop = threading.Event()

    def call(worker: int) -> None:
        port, sent = leaving.port, 0
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        while not stop.is_set():
            sent += 1
            content = msgspec.json.encode(body(f"{run}-{worker}-{sent}"))
            connection.request("POST", "/v1/score", content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
            if response.headers.get("connection") == "close":
                told.set()
                connection.close()
                connection = http.client.HTTPConnection("127.0.0.1", staying.port, timeout=10)
        connection.close()

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(call, worker) for worker in range(4)]
        while len(statuses) < 50:
            time.sleep(0.01)
        leaving._process.send_signal(signal.SIGTERM)
        assert told.wait(5)
        ready = leaving.client.get("/readyz")
        assert ready.status_code == 503
        assert set(ready.json()["missing"]) == {"gateway"}
        assert leaving._process.wait(20) in (0, -signal.SIGTERM)
        time.sleep(0.3)
        stop.set()
        for future in futures:
            future.result()
    assert set(statuses) == {200}
    assert len(read_all(stack, topic)) == len(statuses)


def test_planted_card_number_is_in_no_log_metric_or_problem(
    topic: str, start: Callable[[], Process]
) -> None:
    planted = "4111111111111111"
    gateway = start()
    good = body(f"t-{planted}", customer_id=f"c-{planted}", terminal_id=f"m-{planted}")
    texts = []
    for sent in (
        good,
        good | {"amount": -1},
        good | {"amount": 3},
        good | {"event_time": f"{planted}"},
        good | {"customer_id": planted * 20},
        {"transaction_id": planted},
    ):
        response = gateway.client.post("/v1/score", json=sent)
        if response.status_code != 200:
            texts.append(response.text)
    assert len(texts) == 5
    gateway.client.post("/v1/score", content=planted.encode() + b"{")
    gateway.client.post("/v1/score/batch", json={"transactions": [good, planted]})
    gateway.client.get(f"/v1/decisions/t-{planted}")
    label = {"transaction_id": f"t-{planted}", "is_fraud": True, "source": planted}
    gateway.client.post("/v1/feedback", json=label | {"terminal_id": planted})
    gateway.client.get(f"/{planted}")
    texts += [gateway.client.get(f"/{page}").text for page in ("metrics", "readyz", "healthz")]
    gateway.stop(signal.SIGTERM)
    texts.append(gateway.log.read_text())
    assert "Uvicorn running" in texts[-1]
    for text in texts:
        assert planted not in text
