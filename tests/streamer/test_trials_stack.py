"""Shadow, canary and drift in a streamer on real Kafka, Triton and Valkey."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import valkey
import xgboost as xgb
from confluent_kafka import Producer

from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.features.hashing import key_of
from flagger.kafka import producer_config
from flagger.models import live_version, load_version, version_folder
from flagger.pointer import read_audit, read_pointer
from flagger.policies import roll_back_policy, set_policy
from flagger.settings import Settings
from flagger.trials import set_canary, set_shadow
from flagger.wire.messages import Decision
from loadtest.offline import replay_log
from loadtest.own_topics import own_topic_names
from loadtest.topic_reader import read_topic
from loadtest.unloaded import unloaded
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline
from streamer.produce import ReplayProducer
from streamer.topics import ensure_topics
from train.fit import Hyperparameters
from train.pipeline import TrainingPlan, train_model

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

numbers = itertools.count(1)
DEADLINE_S = 60.0
ROWS = 6_000
SHARE = 0.3


@dataclass
class World:
    """Topics of its own on the stack, and two versions of a model."""

    settings: Settings
    repository: Path
    live: str
    candidate: str
    data: Path

    def send(self, start: int = 0, n: int = ROWS) -> None:
        producer = ReplayProducer(self.settings)
        producer.run(pq.read_table(self.data).slice(start, n).to_batches())
        producer.close()

    def decisions(self) -> list[Decision]:
        values = read_topic(self.settings, self.settings.decisions_topic).values
        return [msgspec.json.decode(value, type=Decision) for value in values]

    @contextmanager
    def streaming(self, role: str, **changes: Any) -> Iterator[StreamerMetrics]:
        """Run a streamer in this process, from the moment on when it has a model in a role."""
        metrics, stop = StreamerMetrics(), threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                settings = self.settings.model_copy(update=changes)
                model = load_version(self.repository, live_version(self.repository))
                Pipeline(settings, model, metrics, keep_going=lambda: not stop.is_set()).run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        try:
            labels = {"role": role, "version": self.live if role == "live" else self.candidate}
            name = "flagger_streamer_model_info"
            wait_until(lambda: metrics.registry.get_sample_value(name, labels) == 1 or bool(errors))
            yield metrics
        finally:
            stop.set()
            thread.join()
        if errors:
            raise errors[0]


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.1)


def value(metrics: StreamerMetrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"flagger_streamer_{name}", labels) or 0.0


def total(metrics: StreamerMetrics, name: str) -> float:
    samples = (s for family in metrics.registry.collect() for s in family.samples)
    return sum(s.value for s in samples if s.name == f"flagger_streamer_{name}")


@pytest.fixture(scope="module")
def candidate(
    stack: LocalStack,
    published: tuple[Path, str],
    small_training: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A second model with other trees, exported and served beside the live one."""
    plan = TrainingPlan(seed=9, hyperparameters=Hyperparameters(max_trees=12, max_depth=3))
    data = small_training.parent / "transactions.parquet"
    other = train_model(data, tmp_path_factory.mktemp("candidate"), plan).directory
    url = stack.addresses.triton_url
    return export_model(other, published[0], triton_url=url, n_parity_rows=100, make_live=False)


@pytest.fixture
def world(
    stack: LocalStack, published: tuple[Path, str], candidate: str, small_training: Path
) -> Iterator[World]:
    repository, _ = published
    number = next(numbers)
    base = stack.settings()
    url = f"{(base.valkey_url or '').rsplit('/', 1)[0]}/14"
    with closing(valkey.Valkey.from_url(url)) as store:
        store.flushdb()  # the customers of the test before
    names = own_topic_names(f"trials-{number}")
    names |= {"valkey_url": url, "consumer_group": f"trials-{number}"}
    settings = base.model_copy(update={**names, "partitions": 2, "model_repository": repository})
    ensure_topics(settings)
    data = small_training.parent / "transactions.parquet"
    yield World(settings, repository, live_version(repository), candidate, data)
    set_shadow(repository, None)
    set_canary(repository, None)


def test_the_shadow_scores_and_decides_nothing(world: World) -> None:
    set_shadow(world.repository, world.candidate)
    with world.streaming("shadow", shadow_rows_per_s=100_000) as metrics:
        world.send()
        wait_until(lambda: total(metrics, "decided_total") >= ROWS)
        wait_until(lambda: total(metrics, "shadow_decisions_total") > 0)
    decisions = world.decisions()
    assert len(decisions) == ROWS
    assert {d.model_version for d in decisions} == {world.live}
    compared = total(metrics, "shadow_decisions_total")
    assert 0 < compared <= ROWS
    assert value(metrics, "shadow_decisions_total", live="approve", shadow="approve") > 0
    assert value(metrics, "shadow_score_difference_count") == compared
    assert value(metrics, "shadow_score_difference_sum") > 0
    assert value(metrics, "shadow_errors_total") == 0


def test_the_canary_decides_its_customers_and_the_live_version_the_others(world: World) -> None:
    set_canary(world.repository, world.candidate, SHARE)
    canary = read_pointer(world.repository).canary
    assert canary is not None
    with world.streaming("canary", canary_timeout_ms=5_000) as metrics:
        world.send()
        wait_until(lambda: total(metrics, "decided_total") >= ROWS)
    decisions = {key_of(d.transaction_id): d for d in world.decisions()}
    assert len(decisions) == ROWS
    customers = np.array([key_of(d.customer_id) for d in decisions.values()], dtype=np.uint64)
    chosen = dict(zip(decisions, canary.chosen(customers).tolist(), strict=True))
    log = read_topic(world.settings, world.settings.transactions_topic)
    labels = read_topic(world.settings, world.settings.labels_topic)
    for version, is_canary in ((world.live, False), (world.candidate, True)):
        model = load_version(world.repository, version)
        replay = replay_log(log, labels, model.contract)
        file = version_folder(world.repository, version) / "xgboost.json"
        scores = xgb.Booster(model_file=file).inplace_predict(replay.rows, missing=np.nan)
        mine = [i for i, key in enumerate(replay.key.tolist()) if chosen[key] == is_canary]
        assert len(mine) > ROWS / 10
        told = [decisions[key] for key in replay.key[mine].tolist()]
        assert {(d.model_version, d.policy_version) for d in told} == {
            (version, model.policy.version)
        }
        answered = np.array([d.score for d in told], dtype=np.float32)
        np.testing.assert_allclose(answered, scores[mine], atol=1e-5)
        wanted = model.policy.decide(answered)
        assert [("approve", "review", "decline").index(d.decision) for d in told] == wanted.tolist()
    alerts = read_topic(world.settings, world.settings.alerts_topic).values
    assert len(alerts) == sum(d.decision != "approve" for d in decisions.values())
    assert total(metrics, "canary_decisions_total") == ROWS
    assert value(metrics, "canary_failures_total") == 0


def test_a_canary_that_flags_everything_is_stopped_for_all_doors(world: World) -> None:
    set_policy(world.repository, 1e-6, 1.0, version=world.candidate)
    try:
        set_canary(world.repository, world.candidate, SHARE)
        with world.streaming("canary", canary_timeout_ms=5_000) as metrics:
            world.send()
            wait_until(lambda: total(metrics, "decided_total") >= ROWS)
            wait_until(lambda: value(metrics, "canary_stopped_total") == 1)
            wait_until(lambda: read_pointer(world.repository).canary is None)
            world.send(ROWS, 1_000)
            wait_until(lambda: total(metrics, "decided_total") >= ROWS + 1_000)
    finally:
        roll_back_policy(world.repository, version=world.candidate)
    record = read_audit(world.repository)[-2]
    assert record["action"] == "canary stop"
    assert "it flags" in record["why"]
    assert record["by"] == "flagger stream, instance 0"
    decisions = world.decisions()
    assert len(decisions) == ROWS + 1_000
    assert {d.model_version for d in decisions[-100:]} == {world.live}


def test_what_the_canary_does_not_answer_the_live_version_decides(world: World) -> None:
    set_canary(world.repository, world.candidate, SHARE)
    triton_url = world.settings.triton_url or ""
    lost = unloaded(world.repository, world.candidate, triton_url)
    with world.streaming("canary") as metrics, lost:
        for start in range(0, ROWS, 100):
            world.send(start, 100)
        wait_until(lambda: total(metrics, "decided_total") >= ROWS)
    decisions = world.decisions()
    assert len({d.transaction_id for d in decisions}) == len(decisions) == ROWS
    assert {d.decision_source for d in decisions} == {"model"}
    assert {d.model_version for d in decisions} == {world.live}
    assert value(metrics, "canary_failures_total") > 0


def test_drift_is_watched(world: World) -> None:
    with world.streaming("live", drift_rows_per_s=10_000) as metrics:
        world.send(0, 100)  # the reference is asked for
        wait_until(lambda: total(metrics, "decided_total") >= 100)
        world.send(100, 14_000)
        wait_until(lambda: total(metrics, "decided_total") >= 14_100)
    assert value(metrics, "drift_rows_total") > 0


def test_what_the_live_version_decided_at_the_gateway_is_compared_too(world: World) -> None:
    set_shadow(world.repository, world.candidate)
    producer = Producer(producer_config(world.settings))
    with world.streaming("shadow", shadow_rows_per_s=100_000) as metrics:
        for number in range(250):
            by_canary = number % 5 == 0
            payment = {
                "transaction_id": f"g{number}",
                "event_time": time.time_ns() // 1_000_000,
                "customer_id": f"c{number}",
                "terminal_id": "m",
                "amount": 10.0,
            }
            decision = Decision(
                transaction_id=f"g{number}",
                customer_id=f"c{number}",
                event_time=payment["event_time"],  # type: ignore[arg-type]
                amount=10.0,
                decision="decline" if by_canary else "approve",
                decision_source="model",
                score=1.0 if by_canary else 0.0001,
                model="fraud_onnx",
                model_version=world.candidate if by_canary else world.live,
            )
            body = msgspec.json.encode({**payment, "decision": decision})
            producer.produce(world.settings.transactions_topic, body, f"c{number}")
        assert producer.flush(30) == 0
        wait_until(lambda: total(metrics, "decided_total") >= 250)
        wait_until(lambda: total(metrics, "shadow_decisions_total") > 0)
    producer.close()
    approved = sum(
        value(metrics, "shadow_decisions_total", live="approve", shadow=word)
        for word in ("approve", "review", "decline")
    )
    assert approved == total(metrics, "shadow_decisions_total")  # none of the canary's
    assert approved <= 200
