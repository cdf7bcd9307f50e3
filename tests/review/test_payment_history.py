"""The newest payments of customers and terminals: on real Valkey, and from real Kafka."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import valkey
from confluent_kafka import Producer

from deploy.local.stack import LocalStack
from flagger.errors import StackError, StateStoreError
from flagger.health import Health
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.wire.messages import Transaction
from loadtest.own_topics import own_topic_names
from review.consumer import DeskConsumer
from review.database import migrate, open_engine
from review.history import Payment, PaymentHistory, payment_of
from review.history_consumer import HistoryThread
from review.life import CaseLife
from review.metrics import DeskMetrics
from review.store import CaseStore
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack

KEPT, DAYS = 5, 2
START_MS = 1_790_000_000_000


def payment(i: int, **values: object) -> Transaction:
    return Transaction(
        **{  # type: ignore[arg-type]
            "transaction_id": f"t{i}",
            "event_time": START_MS + i * 1_000,
            "customer_id": "c1",
            "terminal_id": f"m{i % 2}",
            "amount": 10.0 + i,
            "currency": "EUR",
            "channel": "ecom",
            **values,
        }
    )


@pytest.fixture
def url(stack: LocalStack) -> Iterator[str]:
    """An empty Valkey database."""
    found = f"{stack.addresses.valkey_url.rsplit('/', 1)[0]}/12"
    with server(found) as client:
        client.flushdb()
        yield found
        client.flushdb()


@pytest.fixture
def history(url: str) -> Iterator[PaymentHistory]:
    made = PaymentHistory(url, KEPT, DAYS)
    yield made
    made.close()


@pytest.fixture
def settings(stack: LocalStack, url: str) -> Settings:
    name = f"history-{uuid.uuid4().hex[:8]}"
    made = stack.settings().model_copy(
        update={**own_topic_names(name), "consumer_group": name, "partitions": 2, "valkey_url": url}
    )
    ensure_topics(made)
    return made


def send(settings: Settings, values: Sequence[bytes]) -> None:
    producer = Producer(producer_config(settings))
    for value in values:
        producer.produce(settings.transactions_topic, value, b"c1")
    assert producer.flush(30) == 0
    producer.close()


def wait_until(done: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


def value_of(metrics: DeskMetrics, name: str) -> float:
    return metrics.registry.get_sample_value(f"flagger_desk_history_{name}_total") or 0.0


@contextmanager
def server(url: str) -> Iterator[Any]:
    """The client library, whose types are half of them missing."""
    client: Any = valkey.Valkey.from_url(url)
    yield client
    client.close()


def ids(payments: list[Payment]) -> list[str]:
    return [p.transaction_id for p in payments]


def test_the_newest_are_kept_for_both_and_a_repeat_is_seen_once(
    history: PaymentHistory, url: str
) -> None:
    payments = [payment_of(payment(i)) for i in range(1_000)]
    history.add(payments)
    assert history.newest("customer", "c1") == payments[:-6:-1]
    assert ids(history.newest("terminal", "m1")) == [f"t{i}" for i in range(999, 990, -2)]
    history.add(payments[-1:])
    assert ids(history.newest("customer", "c1")) == ["t999", "t998", "t997", "t996"]
    assert history.newest("customer", "c2") == []
    with server(url) as client:
        names = client.keys("ff:pay:*")
        assert len(names) == 3
        assert not any(b"c1" in name for name in names)  # ids are hashed
        for name in names:
            assert client.llen(name) == KEPT
            assert 0 < client.ttl(name) <= DAYS * 86_400


def test_what_another_release_wrote_is_an_error_and_not_a_payment(
    history: PaymentHistory, url: str
) -> None:
    history.add([payment_of(payment(1))])
    with server(url) as client:
        (name,) = client.keys("ff:pay:c:*")
        client.lpush(name, b"\x91\xa1x")
    with pytest.raises(StateStoreError, match="another release"):
        history.newest("customer", "c1")


def test_payments_come_from_kafka_once_and_go_on_after_a_restart(
    settings: Settings, history: PaymentHistory, url: str
) -> None:
    encoded = [msgspec.json.encode(payment(i)) for i in range(3)]
    send(settings, [encoded[0], b"\x00avro or worse", encoded[1]])
    metrics, health = DeskMetrics(), Health({})
    thread = HistoryThread(settings, PaymentHistory(url, KEPT, DAYS), metrics, health)
    wait_until(lambda: value_of(metrics, "payments") == 2)
    thread.close()
    assert value_of(metrics, "unreadable") == 1
    send(settings, encoded[2:])
    metrics = DeskMetrics()
    thread = HistoryThread(settings, PaymentHistory(url, KEPT, DAYS), metrics, health)
    wait_until(lambda: len(history.newest("customer", "c1")) == 3)
    thread.close()
    assert value_of(metrics, "payments") == 1  # nothing was read again
    assert thread.failure is None
    assert ids(history.newest("customer", "c1")) == ["t2", "t1", "t0"]


def test_payments_wait_while_valkey_is_away(
    settings: Settings, history: PaymentHistory, url: str
) -> None:
    class Away(PaymentHistory):
        away = True

        def add(self, payments: Sequence[Payment]) -> None:
            if self.away:
                raise StateStoreError("away")
            super().add(payments)

    metrics, health = DeskMetrics(), Health({})
    store = Away(url, KEPT, DAYS)
    thread = HistoryThread(settings, store, metrics, health)
    send(settings, [msgspec.json.encode(payment(i)) for i in range(3)])
    wait_until(lambda: health.is_waiting_for("history"))
    assert history.newest("customer", "c1") == []
    store.away = False
    wait_until(lambda: len(history.newest("customer", "c1")) == 3)
    wait_until(lambda: not health.reasons)
    thread.close()


def test_the_consumer_ends_if_its_side_thread_has(settings: Settings, tmp_path: Path) -> None:
    class Failed:
        failure = StackError("Kafka refuses")

    engine = open_engine(f"sqlite:///{tmp_path / 'cases.db'}")
    migrate(engine)
    life = CaseLife(engine, lambda: START_MS, 60_000)
    consumer = DeskConsumer(
        settings, CaseStore(engine), life, DeskMetrics(), Health({}), side_thread=Failed()
    )
    with pytest.raises(StackError, match="Kafka refuses"):
        consumer.run()
    engine.dispose()
