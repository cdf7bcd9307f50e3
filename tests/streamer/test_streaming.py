"""The streamer on real Kafka, Triton and Valkey: every message has exactly one outcome."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import xgboost as xgb
from confluent_kafka import Producer

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.errors import ConfigurationError
from flagger.features.hashing import key_of
from flagger.kafka import producer_config
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import ModelVersion, live_version, load_version
from flagger.settings import Settings
from flagger.state.store import StateStore
from flagger.wire.messages import Decision
from loadtest.offline import Verdict, compare, replay_log
from loadtest.processes import FlaggerProcess, environment_of
from loadtest.topic_reader import read_topic
from streamer.dead_letters import read_dead_letters, send_again
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline
from streamer.produce import ReplayProducer
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

START_MS = 1_767_225_600_000
numbers = itertools.count(1)
TOPICS = ("transactions", "decisions", "alerts", "labels", "activity", "dead_letter")
DEADLINE_S = 60.0


class World:
    """One set of topics on the stack, and the streamers that work on it."""

    def __init__(self, settings: Settings, model: ModelVersion, folder: Path) -> None:
        self.settings = settings
        self.model = model
        self._folder = folder
        self._processes: list[FlaggerProcess] = []
        ensure_topics(settings)

    def decisions(self) -> list[Decision]:
        values = read_topic(self.settings, self.settings.decisions_topic).values
        return [msgspec.json.decode(value, type=Decision) for value in values]

    def start(self, instance: str = "0") -> FlaggerProcess:
        """Start `flagger stream` as a process."""
        named = {f"{t}_topic": getattr(self.settings, f"{t}_topic") for t in TOPICS}
        named |= {"consumer_group": self.settings.consumer_group, "instance": instance}
        environment = environment_of(
            self.settings, {f"FLAGGER_{name.upper()}": value for name, value in named.items()}
        )
        log = self._folder / f"streamer-{instance}.log"
        process = FlaggerProcess(["stream", "--metrics-port", "0"], environment, log)
        self._processes.append(process)
        return process

    def run_until(
        self,
        done: Callable[[StreamerMetrics], bool],
        *,
        clock_behind_ms: int = 0,
        **changes: Any,
    ) -> StreamerMetrics:
        """Run a streamer with changed settings in this process until `done` says so."""
        metrics = StreamerMetrics()
        settings = self.settings.model_copy(update=changes)
        stop = threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                pipeline = Pipeline(
                    settings,
                    self.model,
                    metrics,
                    keep_going=lambda: not stop.is_set(),
                    clock_ms=lambda: time.time_ns() // 1_000_000 - clock_behind_ms,
                )
                pipeline.run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            wait_until(lambda: bool(errors) or done(metrics))
        finally:
            stop.set()
            thread.join()
        if errors:
            raise errors[0]
        return metrics

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture
def world(stack: LocalStack, published: tuple[Path, str], tmp_path: Path) -> Iterator[World]:
    repository, _ = published
    number = next(numbers)
    base = stack.settings()
    url = f"{(base.valkey_url or '').rsplit('/', 1)[0]}/{number}"
    names = {f"{topic}_topic": f"{topic}-{number}" for topic in TOPICS}
    changes = {"valkey_url": url, "consumer_group": f"group-{number}", "partitions": 3}
    version = live_version(repository)  # another test may have published since
    settings = base.model_copy(update={**names, **changes, "model_repository": repository})
    made = World(settings, load_version(repository, version), tmp_path)
    yield made
    made.close()


def message(number: int, **changes: Any) -> bytes:
    return json.dumps(
        {
            "transaction_id": f"t{number}",
            "event_time": START_MS + number * 1_000,
            "customer_id": f"c{number % 7}",
            "terminal_id": f"m{number % 5}",
            "amount": 10.0 + number,
            **changes,
        }
    ).encode()


def send(settings: Settings, values: list[bytes | None], key: bytes = b"k") -> None:
    producer = Producer(producer_config(settings))
    failures: list[Any] = []
    for value in values:
        producer.produce(
            settings.transactions_topic,
            value,
            key,
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
    assert producer.flush(30) == 0
    assert not failures
    producer.close()


def verdict(world: World, training: Path) -> Verdict:
    """Hold everything on the topics against the offline replay of the log."""
    settings = world.settings
    log = read_topic(settings, settings.transactions_topic)
    replay = replay_log(log, read_topic(settings, settings.labels_topic), world.model.contract)
    booster = xgb.Booster(model_file=training / "model.json")
    scores = booster.inplace_predict(replay.rows, missing=np.nan)
    dead_letters = len(read_topic(settings, settings.dead_letter_topic))
    return compare(replay, scores, world.decisions(), dead_letters)


def test_every_message_has_one_outcome(world: World, small_training: Path) -> None:
    bad = [
        b"{not json",
        b"",
        None,  # a tombstone
        message(0).replace(b'"amount": 10.0', b'"amount": NaN'),
        message(0, amount=-1),
        message(0, amount=1e15),
        message(0, amount="12"),
        message(0, event_time="yesterday"),
        message(0, customer_id=None),
        message(0, schema_version=7),
        json.dumps({"transaction_id": "x"}).encode(),
        message(0, note="x" * 1_000_000),
        b"\xff\xfe" * 50,
    ]
    good = [message(i) for i in range(300)]
    repeats = [message(299), message(298)]
    mixed: list[bytes | None] = [*good[:100], *bad, *good[100:], *repeats]
    send(world.settings, mixed)
    metrics = world.run_until(lambda _: len(world.decisions()) >= len(good))
    found = verdict(world, small_training)
    assert found.failures == []
    assert found.decided == len(good)
    assert metrics.duplicates._value.get() == len(repeats)

    letters = list(read_dead_letters(world.settings))
    assert sorted(letter.value for letter in letters) == sorted(value or b"" for value in bad)
    for letter in letters:
        headers = letter.headers
        assert headers["source_topic"] == world.settings.transactions_topic
        assert headers["error_class"] == "BadMessageError"
        assert headers["schema_version"] == "1"
        log = read_topic(world.settings, headers["source_topic"])
        where = (log.partition == int(headers["source_partition"])) & (
            log.offset == int(headers["source_offset"])
        )
        assert log.values[int(np.flatnonzero(where)[0])] == letter.value
    reasons = {letter.headers["reason"] for letter in letters}
    assert any("amount: -1 is not between 0 and" in reason for reason in reasons)
    assert any("the limit is 65,536" in reason for reason in reasons)


def test_a_kill_loses_nothing_and_decides_nothing_twice(world: World, small_training: Path) -> None:
    table = pq.read_table(small_training.parent / "transactions.parquet")
    producer = ReplayProducer(world.settings)
    producer.run(table.slice(0, 12_000).to_batches())
    first = world.start()
    wait_until(lambda: len(world.decisions()) > 3_000)
    first.kill()
    producer.run(table.slice(12_000).to_batches())
    producer.close()
    second = world.start()
    wait_until(lambda: len(world.decisions()) >= table.num_rows)
    second.stop()
    found = verdict(world, small_training)
    assert found.details == []
    assert found.failures == []
    assert found.decided == table.num_rows


def test_streamers_come_and_go_and_share_the_partitions(world: World, small_training: Path) -> None:
    # Less than the label delay: how far the streamers are apart cannot show in the features.
    table = pq.read_table(small_training.parent / "transactions.parquet").slice(0, 3_000)
    producer = ReplayProducer(world.settings)
    producer.run(table.slice(0, 1_000).to_batches())
    first = world.start("first")
    wait_until(lambda: len(world.decisions()) >= 1_000)
    second = world.start("second")
    producer.run(table.slice(1_000, 1_000).to_batches())
    wait_until(lambda: len(world.decisions()) >= 2_000)
    first.stop()
    producer.run(table.slice(2_000).to_batches())
    producer.close()
    wait_until(lambda: len(world.decisions()) >= 3_000)
    second.stop()
    found = verdict(world, small_training)
    assert found.details == []
    assert found.failures == []
    assert found.decided == table.num_rows


def test_what_the_gateway_decided_is_forwarded_and_counted(world: World) -> None:
    decision = Decision(
        transaction_id="t1",
        customer_id="c1",
        event_time=START_MS,
        amount=5.0,
        decision="review",
        decision_source="fallback",
        reasons=["the model did not answer in time"],
    )
    value = message(1, customer_id="c1", decision=msgspec.to_builtins(decision))
    others = [message(22, customer_id="c1"), message(8, customer_id="c1")]
    send(world.settings, [others[0], value, value, others[1]])
    world.run_until(lambda _: len(world.decisions()) >= 3)
    first, forwarded, last = world.decisions()  # in the order of the log
    assert forwarded == decision
    assert [first.transaction_id, last.transaction_id] == ["t22", "t8"]
    alerts = read_topic(world.settings, world.settings.alerts_topic).values
    assert decision in [msgspec.json.decode(alert, type=Decision) for alert in alerts]
    store = StateStore(world.settings.valkey_url or "")
    record = store.read("customer", np.array([key_of("c1")], dtype=np.uint64))
    store.close()
    assert int(record["count"][0]) == 3


def test_a_new_model_version_takes_over_without_a_restart(
    world: World, small_training: Path, stack: LocalStack
) -> None:
    send(world.settings, [message(i) for i in range(50)])
    published = threading.Event()

    def done(_: StreamerMetrics) -> bool:
        count = len(world.decisions())
        if count == 50 and not published.is_set():
            export_model(
                small_training,
                world.settings.model_repository,
                triton_url=stack.addresses.triton_url,
                n_parity_rows=200,
            )
            published.set()
            time.sleep(2 * FOLLOW_INTERVAL_S)
            send(world.settings, [message(i) for i in range(50, 100)])
        return count == 100

    world.run_until(done)
    versions = [decision.model_version for decision in world.decisions()]
    before, after = world.model.version, live_version(world.settings.model_repository)
    assert before != after
    assert sorted(versions) == sorted([before] * 50 + [after] * 50)


def test_state_of_another_log_is_refused(world: World) -> None:
    send(world.settings, [message(1)])
    world.run_until(lambda _: len(world.decisions()) >= 1)
    store = StateStore(world.settings.valkey_url or "")
    marks = store.read_marks(world.settings.consumer_group)
    store.write_marks(world.settings.consumer_group, {p: v + 1_000 for p, v in marks.items()})
    store.close()
    with pytest.raises(ConfigurationError, match="state of another log"):
        world.run_until(lambda _: False)


def test_a_bad_label_becomes_a_dead_letter(world: World) -> None:
    producer = Producer(producer_config(world.settings))
    producer.produce(world.settings.labels_topic, b'{"is_fraud": 1}', partition=0)
    producer.flush(30)
    producer.close()
    send(world.settings, [message(1)])
    world.run_until(
        lambda _: len(read_topic(world.settings, world.settings.dead_letter_topic)) == 1
    )
    (letter,) = read_dead_letters(world.settings)
    assert letter.value == b'{"is_fraud": 1}'
    assert letter.headers["source_topic"] == world.settings.labels_topic


def test_a_dead_letter_can_be_sent_again_once_its_cause_is_gone(world: World) -> None:
    hour_ms = 3_600_000
    early = message(1, event_time=int(time.time() * 1000) + 24 * hour_ms - hour_ms // 2)
    send(world.settings, [early, message(2)])
    world.run_until(lambda _: len(world.decisions()) == 1, clock_behind_ms=hour_ms)
    (letter,) = read_dead_letters(world.settings)
    assert "more than a day in the future" in letter.headers["reason"]
    assert send_again(world.settings, [letter]) == 1
    world.run_until(lambda _: len(world.decisions()) == 2)
    assert sorted(decision.transaction_id for decision in world.decisions()) == ["t1", "t2"]


def test_a_stop_while_state_is_rebuilt_claims_no_more_than_was_read(
    world: World, small_training: Path
) -> None:
    table = pq.read_table(small_training.parent / "transactions.parquet").slice(0, 4_000)
    producer = ReplayProducer(world.settings)
    producer.run(table.to_batches())
    first = world.start()
    wait_until(lambda: len(world.decisions()) >= 4_000)
    first.kill()
    store = StateStore(world.settings.valkey_url or "")
    store._client.flushdb()  # all of the log has to be read again
    rebuilding = world.run_until(
        lambda metrics: metrics.replayed._value.get() > 0,
        max_batch_rows=16,
        state_flush_interval_ms=10**6,
    )
    assert 0 < rebuilding.replayed._value.get() < 4_000
    marks = store.read_marks(world.settings.consumer_group)
    store.close()
    assert sum(marks.values()) <= rebuilding.replayed._value.get()
    more = pq.read_table(small_training.parent / "transactions.parquet").slice(4_000, 500)
    producer.run(more.to_batches())
    producer.close()
    world.run_until(lambda _: len(world.decisions()) >= 4_500)
    found = verdict(world, small_training)
    assert found.failures == []
    assert found.details == []


def test_flagged_transactions_say_why_to_people_and_machines(
    world: World, small_training: Path
) -> None:
    table = pq.read_table(small_training.parent / "transactions.parquet").slice(0, 6_000)
    producer = ReplayProducer(world.settings)
    producer.run(table.to_batches())
    producer.close()
    world.run_until(lambda _: len(world.decisions()) >= 6_000)
    values = read_topic(world.settings, world.settings.alerts_topic).values
    alerts = [msgspec.json.decode(value, type=Decision) for value in values]
    assert alerts
    flagged = [d for d in world.decisions() if d.decision != "approve"]
    assert sorted(a.transaction_id for a in alerts) == sorted(d.transaction_id for d in flagged)
    for alert in alerts:
        assert alert.reason_codes[0] == "score"
        assert len(alert.reasons) == len(alert.reason_codes)
    explained = [alert for alert in alerts if len(alert.reasons) > 1]
    assert len(explained) >= len(alerts) / 2  # the others waited too long for an answer


def test_rules_decide_while_the_model_server_is_away(world: World) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    send(world.settings, [*(message(i) for i in range(20)), message(20, amount=5_000.0)])
    metrics = world.run_until(
        lambda _: len(world.decisions()) >= 21,
        triton_url=nobody,
        streamer_fallback="rules",
        streamer_fallback_after_ms=300,
        state_flush_interval_ms=1_000_000,
    )
    decisions = {d.transaction_id: d for d in world.decisions()}
    assert {d.decision_source for d in decisions.values()} == {"rules"}
    assert {d.score for d in decisions.values()} == {None}
    assert decisions["t1"].decision == "approve"
    assert decisions["t20"].decision == "review"
    assert "rule: an amount of 2,000 or more" in decisions["t20"].reasons
    assert set(decisions["t20"].reason_codes) == {"rule"}
    assert metrics.model_errors.labels("unavailable")._value.get() > 0
    alerts = read_topic(world.settings, world.settings.alerts_topic).values
    assert len(alerts) == sum(d.decision != "approve" for d in decisions.values())
