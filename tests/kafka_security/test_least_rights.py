"""The rights of docs/kafka-security.md are enough: each program as a user who has no others.

The streamer is in `test_kafka_security`.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from deploy.smoke import SmokePlan, run_smoke
from flagger.alert import Alert
from flagger.errors import StackError
from flagger.kafka import client_config, producer_config
from flagger.settings import ENV_PREFIX, Settings
from gateway.producer import TransactionLog
from loadtest.alert_sinks import WebhookSink
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, wait_for_url
from loadtest.topic_reader import read_topic
from review.consumer import group_of
from review.database import migrate, open_engine
from review.life import Analyst, CaseLife
from review.store import CaseStore
from streamer.dead_letters import mark_sent, read_dead_letters, send_again
from streamer.produce import ReplayProducer
from streamer.topics import ensure_topics
from train.simulate import SimulationConfig, simulate
from train.topics import read_values

pytestmark = pytest.mark.stack

AsDocumented = Callable[[str, Settings], Settings]
ALERT = Alert(
    transaction_id="flagged-1",
    customer_id="c1",
    terminal_id="m1",
    event_time=1_767_225_600_000,
    amount=100.0,
    decision="decline",
    decision_source="model",
    score=0.97,
    reasons=["fraud score 0.9700 reaches the decline threshold 0.9000"],
    reason_codes=["score"],
)
PAYMENT = {
    "transaction_id": "t1",
    "event_time": ALERT.event_time,
    "customer_id": "c1",
    "terminal_id": "m1",
    "amount": 100.0,
    "channel": "ecom",
}


@pytest.fixture(scope="module")
def everything(secure_kafka: Any) -> Settings:
    """Topics of these tests, as a user who may do everything."""
    name = f"rights-{uuid.uuid4().hex[:8]}"
    own = {"consumer_group": name, "alerts_group": f"{name}-people", "partitions": 2}
    settings: Settings = secure_kafka.settings(**own_topic_names(name), **own)
    ensure_topics(settings)
    return settings


def send(settings: Settings, topic: str, value: bytes, **more: Any) -> None:
    producer = Producer(producer_config(settings))
    producer.produce(topic, value, **more)
    assert producer.flush(20) == 0
    producer.close()


def wait_until(done: Callable[[], bool], process: FlaggerProcess) -> None:
    deadline_s = time.monotonic() + 30
    while not done():
        process.require_running()
        assert time.monotonic() < deadline_s, process.tail()
        time.sleep(0.1)


@contextmanager
def running(
    arguments: list[str], settings: Settings, folder: Path, **more: str
) -> Iterator[FlaggerProcess]:
    """Run a service as a process, and give it back once it is ready; it must stay so."""
    (port,) = free_ports(1)
    names = [n for n in settings.model_fields_set if n != "kafka_password"]
    variables = {n: str(getattr(settings, n)) for n in names} | more
    assert settings.kafka_password is not None
    variables["kafka_password"] = settings.kafka_password.get_secret_value()
    environment = os.environ | {f"{ENV_PREFIX}{n.upper()}": v for n, v in variables.items()}
    command = [*arguments, "--metrics-port", str(port)]
    process = FlaggerProcess(command, environment, folder / "service.log")
    try:
        wait_for_url(f"http://127.0.0.1:{port}/readyz", process)
        yield process
        with urlopen(f"http://127.0.0.1:{port}/readyz") as answer:
            assert answer.status == 200
        process.stop()
    finally:
        process.kill()
    assert "authorization" not in (folder / "service.log").read_text().lower()


def committed(settings: Settings, group: str, topic: str) -> int:
    """Return how many messages of a topic a group has read."""
    reader = Consumer(client_config(settings) | {"group.id": group})
    places = [TopicPartition(topic, p) for p in range(settings.partitions)]
    found: int = sum(max(place.offset, 0) for place in reader.committed(places, timeout=20))
    reader.close()
    return found


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_gateway(everything: Settings, as_documented: AsDocumented) -> None:
    log = TransactionLog(as_documented("gateway", everything))
    try:
        await log.check(10.0)
        await log.write(b"c1", msgspec.json.encode(PAYMENT), 20_000)
        await log.write_label(b"{}", 20_000)
    finally:
        await log.close()


def test_the_desk(
    everything: Settings, as_documented: AsDocumented, own_valkey: LocalStack, tmp_path: Path
) -> None:
    """A flag becomes a case, a payment is kept beside it, an analyst's decision goes to Kafka."""
    url = f"sqlite:///{tmp_path / 'cases.db'}"
    engine = open_engine(url)
    migrate(engine)
    send(everything, everything.alerts_topic, msgspec.json.encode(ALERT))
    send(everything, everything.transactions_topic, msgspec.json.encode(PAYMENT))
    own = as_documented("flagger desk consume", everything)
    labels_before = len(read_topic(everything, everything.labels_topic).values)
    with running(
        ["desk", "consume"], own, tmp_path,
        case_store_url=url, valkey_url=own_valkey.addresses.valkey_url,
    ) as desk:  # fmt: skip
        wait_until(lambda: sum(CaseStore(engine).count_states().values()) > 0, desk)
        CaseLife(engine, lambda: time.time_ns() // 1_000_000, 900_000).act(
            "confirm", [ALERT.transaction_id], Analyst("ann")
        )
        of_flags, of_payments = group_of(everything), f"{group_of(everything)}-history"
        wait_until(lambda: committed(everything, of_flags, everything.alerts_topic) > 0, desk)
        wait_until(
            lambda: committed(everything, of_payments, everything.transactions_topic) > 0, desk
        )
        wait_until(
            lambda: len(read_topic(everything, everything.labels_topic).values) > labels_before,
            desk,
        )
    engine.dispose()


def test_alerts(everything: Settings, as_documented: AsDocumented, tmp_path: Path) -> None:
    """People are told of a flag, and that nothing is decided."""
    sink = WebhookSink()
    url, rules = tmp_path / "url", tmp_path / "alerts.toml"
    url.write_text(sink.url)
    rules.write_text(
        f'[receiver.people]\nurl_file = "{url}"\n'
        '[[rule]]\nname = "all"\nreceivers = ["people"]\n'
        '[silence]\nreceivers = ["people"]\nafter_s = 2\n'
    )
    send(everything, everything.alerts_topic, msgspec.json.encode(ALERT))
    own = as_documented("flagger alerts run", everything)
    with running(["alerts", "run", "--file", str(rules)], own, tmp_path) as alerts:
        wait_until(lambda: any(ALERT.transaction_id in told.text for told in sink.told), alerts)
        wait_until(lambda: any("No decision for" in told.text for told in sink.told), alerts)
        wait_until(
            lambda: committed(everything, everything.alerts_group, everything.alerts_topic) > 0,
            alerts,
        )
    sink.close()


def test_the_labels_watch(
    everything: Settings, as_documented: AsDocumented, tmp_path: Path
) -> None:
    own = as_documented("flagger drift watch", everything)
    with running(["drift", "watch"], own, tmp_path):
        pass


@pytest.mark.parametrize("program", ["flagger drift labels", "flagger retrain"])
def test_reading_whole_topics(
    everything: Settings, as_documented: AsDocumented, program: str
) -> None:
    own = as_documented(program, everything)
    send(everything, everything.transactions_topic, b"{}")
    for topic in (own.transactions_topic, own.decisions_topic, own.labels_topic):
        values = [value for piece in read_values(own, topic) for value in piece]
        assert values or topic != own.transactions_topic


def test_dead_letters(everything: Settings, as_documented: AsDocumented) -> None:
    headers = {"source_topic": everything.transactions_topic, "source_partition": "0"}
    send(everything, everything.dead_letter_topic, b"{}", headers=headers)
    reader = as_documented("flagger dead-letters", everything)
    letters = list(read_dead_letters(reader, unsent=True))
    assert len(letters) == 1
    assert send_again(as_documented("flagger dead-letters replay", everything), letters) == 1
    mark_sent(reader, letters)
    assert list(read_dead_letters(reader, unsent=True)) == []


def test_producing(everything: Settings, as_documented: AsDocumented) -> None:
    size = SimulationConfig(customers=100, terminals=60, days=30, start=date(2026, 1, 1), seed=5)
    producer = ReplayProducer(as_documented("flagger produce", everything))
    producer.run(simulate(size))
    producer.close()
    assert producer.sent > 0
    assert producer.labels > 0


def test_smoke(everything: Settings, as_documented: AsDocumented) -> None:
    """No streamer runs: the payments arrive, and their decisions are missing."""
    own = as_documented("flagger smoke", everything)
    result = run_smoke(own, SmokePlan(transactions=3, timeout_s=2.0))
    assert result.failures == ["3 of 3 payments have no decision"]


def test_without_the_rights_there_is_nothing(everything: Settings) -> None:
    nobody = everything.model_copy(update={"kafka_username": "no-rights"})
    with pytest.raises(StackError, match="AUTHORIZATION"):
        list(read_dead_letters(nobody))


def test_every_program_of_the_table_is_tried(request: pytest.FixtureRequest) -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    (conftest,) = (
        plugin
        for plugin in request.config.pluginmanager.get_plugins()
        if getattr(plugin, "__file__", None) == str(Path(__file__).with_name("conftest.py"))
    )
    assert len(conftest.PROGRAMS) > 8
    for program in conftest.PROGRAMS:
        assert f'"{program}"' in text, program
