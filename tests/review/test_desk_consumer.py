"""From Kafka's alerts into the case store and back as labels, on the real broker."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import msgspec
import pytest
from confluent_kafka import Consumer, Producer
from sqlalchemy import text

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.errors import CaseStoreError
from flagger.health import Health
from flagger.kafka import producer_config
from flagger.settings import ENV_PREFIX, Settings
from flagger.wire.messages import Label, parse_label
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, variables_of, wait_for_url
from loadtest.topic_reader import read_topic
from review.consumer import DeskConsumer, group_of
from review.database import open_engine, require_layout
from review.intake import consumer_config, stay_in_group
from review.life import Analyst, CaseLife
from review.metrics import DeskMetrics
from review.queries import CaseQueries, Filter
from review.relay import LabelRelay
from review.store import CaseStore, Flag
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack

BURST = 10_000
MakeFlag = Callable[..., Flag]
# Ends like `kill -9` at the very moment when the flags are on disk and their offsets are not.
DIES_BEFORE_COMMIT = """
import os, signal
import review.intake
class Dying(review.intake.Consumer):
    def commit(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
review.intake.Consumer = Dying
from flagger.cli import main
main()
"""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class World:
    """Topics and a case store of one test."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        name = f"desk-{uuid.uuid4().hex[:8]}"
        url = f"sqlite:///{folder / 'cases.db'}"
        self.settings = settings.model_copy(
            update=own_topic_names(name) | {"consumer_group": name, "partitions": 2}
        )
        self.folder = folder
        ensure_topics(self.settings)
        self.environment = environment_of(self.settings, variables_of({"case_store_url": url}))
        self.engine = open_engine(url)
        require_layout(self.engine)
        self.store = CaseStore(self.engine)
        self.life = CaseLife(self.engine, now_ms, 900_000)
        self.queries = CaseQueries(self.engine, now_ms)
        self.metrics = DeskMetrics()

    def send(self, flags: list[Flag]) -> None:
        producer = Producer(producer_config(self.settings))
        for flag in flags:
            value = msgspec.json.encode(flag.alert)
            producer.produce(self.settings.alerts_topic, value, flag.alert.customer_id)
        assert producer.flush(30) == 0
        producer.close()

    def consume_until(self, done: Callable[[], bool], store: CaseStore | None = None) -> Health:
        deadline_s = time.monotonic() + 30
        health = Health({})

        def keep_going() -> bool:
            assert time.monotonic() < deadline_s, "not done in 30 s"
            return not done()

        DeskConsumer(
            self.settings,
            store or self.store,
            self.life,
            self.metrics,
            health,
            keep_going=keep_going,
        ).run()
        return health

    def ids(self) -> set[str]:
        with self.engine.connect() as connection:
            return set(connection.execute(text("SELECT transaction_id FROM cases")).scalars())

    def count(self) -> int:
        return sum(self.store.count_states().values())

    def labels(self) -> list[Label]:
        values = read_topic(self.settings, self.settings.labels_topic).values
        return [parse_label(value, now_ms()) for value in values]


@pytest.fixture
def world(stack: LocalStack, tmp_path: Path) -> Iterator[World]:
    found = World(stack.settings(), tmp_path)
    yield found
    found.engine.dispose()


def sample(metrics: DeskMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(f"flagger_desk_{name}") or 0.0


def test_what_arrives_while_the_desk_is_down_is_caught_up_once(
    world: World, flag: MakeFlag
) -> None:
    world.send([flag(i, customer_id=f"c{i % 7}") for i in range(50)])
    world.consume_until(lambda: len(world.ids()) == 50)
    world.send([flag(i, customer_id=f"c{i % 7}") for i in range(40, BURST)])  # some come again
    world.consume_until(lambda: world.count() == BURST)
    assert world.ids() == {f"t{i}" for i in range(BURST)}
    world.send([flag(BURST)])
    world.consume_until(lambda: world.count() == BURST + 1)
    assert sample(world.metrics, "cases_stored_total") == BURST + 1
    assert sample(world.metrics, "repeats_total") == 10  # nothing was read again
    assert sample(world.metrics, "event_to_case_seconds_count") == BURST + 11


def test_kill_between_store_and_commit(world: World, flag: MakeFlag) -> None:
    world.send([flag(i) for i in range(30)])
    arguments = ["desk", "consume", "--metrics-port", "0"]
    died = subprocess.run(
        [sys.executable, "-c", DIES_BEFORE_COMMIT, *arguments],
        env=world.environment,
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    first = len(world.ids())
    assert first > 0
    world.send([flag(99)])
    world.consume_until(
        lambda: len(world.ids()) == 31 and sample(world.metrics, "repeats_total") >= first
    )
    assert world.ids() == {f"t{i}" for i in [*range(30), 99]}
    assert sample(world.metrics, "cases_stored_total") == 31 - first


def test_a_message_that_is_no_alert_stops_nothing(world: World, flag: MakeFlag) -> None:
    producer = Producer(producer_config(world.settings))
    for value in (b"", b"{", b'{"transaction_id": "t"}', b"[1]"):
        producer.produce(world.settings.alerts_topic, value, partition=0)
    producer.flush(30)
    producer.close()
    world.send([flag(1)])
    world.consume_until(
        lambda: len(world.ids()) == 1 and sample(world.metrics, "refused_total") == 4
    )


def test_the_database_away_for_a_while_loses_nothing(world: World, flag: MakeFlag) -> None:
    calls = 0

    class Away(CaseStore):
        def add(self, *args: object) -> object:  # type: ignore[override]
            nonlocal calls
            calls += 1
            if calls <= 2:
                raise CaseStoreError("away")
            return super().add(*args)  # type: ignore[arg-type]

    world.send([flag(i) for i in range(5)])
    world.consume_until(lambda: len(world.ids()) == 5, Away(world.engine))
    assert sample(world.metrics, "store_errors_total") >= 2
    assert calls >= 3


def test_decisions_become_labels_in_their_order(world: World, flag: MakeFlag) -> None:
    ann = Analyst("ann")
    world.send([flag(1), flag(2, terminal_id='m "2"')])
    world.consume_until(lambda: len(world.ids()) == 2)
    world.life.act("confirm", ["t1"], ann)
    world.life.act("reopen", ["t1"], ann)
    world.life.act("dismiss", ["t1", "t2"], ann)
    world.consume_until(lambda: sample(world.metrics, "labels_sent_total") == 3)
    labels = world.labels()
    assert [(la.transaction_id, la.is_fraud) for la in labels] == [
        ("t1", True),
        ("t1", False),
        ("t2", False),
    ]
    assert {la.source for la in labels} == {"analyst"}
    case = world.queries.find("t2")
    assert case is not None
    assert (labels[2].terminal_id, labels[2].event_time) == ('m "2"', case.event_time_ms)
    world.consume_until(lambda: world.store.count_waiting_labels() == 0)
    assert len(world.labels()) == 3


def test_a_label_whose_mark_was_lost_is_sent_again(world: World, flag: MakeFlag) -> None:
    class Forgets(CaseStore):
        def mark_sent(self, *_: object) -> None:
            raise CaseStoreError("the database went away")

    world.store.add([flag(1)], now_ms())
    world.life.act("confirm", ["t1"], Analyst("ann"))
    relay = LabelRelay(world.settings, Forgets(world.engine), world.metrics, now_ms)
    with pytest.raises(CaseStoreError):
        relay.send_waiting()
    relay.close()
    assert len(world.labels()) == 1
    relay = LabelRelay(world.settings, world.store, world.metrics, now_ms)
    assert relay.send_waiting() is None
    assert relay.send_waiting() is None
    relay.close()
    assert [la.transaction_id for la in world.labels()] == ["t1", "t1"]


def test_labels_wait_while_kafka_does_not_take_them(world: World, flag: MakeFlag) -> None:
    world.store.add([flag(1)], now_ms())
    world.life.act("confirm", ["t1"], Analyst("ann"))
    nowhere = world.settings.model_copy(update={"labels_topic": "desk-no-such-topic"})
    relay = LabelRelay(nowhere, world.store, world.metrics, now_ms, delivery_ms=1_000)
    why = relay.send_waiting()
    relay.close()
    assert why is not None
    assert "1 labels for desk-no-such-topic" in why
    assert world.store.count_waiting_labels() == 1
    assert sample(world.metrics, "labels_waiting") == 1


@contextmanager
def running_command(world: World, environment: dict[str, str]) -> Iterator[str]:
    """Run `flagger desk consume` until it must end on a signal; the address of its metrics port."""
    (port,) = free_ports(1)
    log = world.folder / "desk.log"
    process = FlaggerProcess(["desk", "consume", "--metrics-port", str(port)], environment, log)
    try:
        wait_for_url(f"http://127.0.0.1:{port}/readyz", process)
        yield f"http://127.0.0.1:{port}"
        process.stop()
    finally:
        process.kill()


def test_the_command_serves_its_health_and_ends_on_a_signal(world: World, flag: MakeFlag) -> None:
    with running_command(world, world.environment) as url:
        world.send([flag(1)])
        deadline_s = time.monotonic() + 30
        metrics = ""
        while "flagger_desk_cases_stored_total 1.0" not in metrics:
            assert time.monotonic() < deadline_s, metrics
            with urlopen(f"{url}/metrics") as answer:
                metrics = answer.read().decode()
            time.sleep(0.1)
        assert 'flagger_desk_waiting{part="case_store"} 0.0' in metrics
    assert world.queries.page(Filter()).count == 1


@pytest.mark.parametrize("kept", [0, 20])
def test_the_command_runs_without_valkey(world: World, flag: MakeFlag, kept: int) -> None:
    """0 says that it is meant so; else it is an oversight, of which the log tells."""
    environment = world.environment | {f"{ENV_PREFIX}DESK_HISTORY_PAYMENTS": str(kept)}
    del environment[f"{ENV_PREFIX}VALKEY_URL"]
    with running_command(world, environment):
        world.send([flag(1)])
        deadline_s = time.monotonic() + 30
        while world.ids() != {"t1"}:
            assert time.monotonic() < deadline_s, "the flag was not stored"
            time.sleep(0.1)
    assert ("FLAGGER_VALKEY_URL" in (world.folder / "desk.log").read_text()) == (kept > 0)


def test_waiting_takes_no_message_even_from_a_partition_that_comes_meanwhile(
    world: World, flag: MakeFlag
) -> None:
    """Partitions that come during the wait are not paused: what they give is read again."""
    world.send([flag(n) for n in range(20)])
    consumer = Consumer(consumer_config(world.settings, group_of(world.settings)))
    consumer.subscribe([world.settings.alerts_topic])
    try:
        deadline_s = time.monotonic() + 30
        while not consumer.assignment():
            assert time.monotonic() < deadline_s
            stay_in_group(consumer, 5.0)
        read: set[tuple[int, int]] = set()
        while len(read) < 20:
            message = consumer.poll(5.0)
            assert message is not None, sorted(read)
            assert message.error() is None
            read.add((message.partition(), message.offset()))
    finally:
        consumer.close()
