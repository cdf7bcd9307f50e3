"""Locust: payments through Kafka, from when each was due to its decision at a reader.

    locust -f loadtest/locust_kafka.py --arrival-rate 200    # addresses from FLAGGER_*

The reader sees committed messages alone. It looks every `_POLL_S`, which counts, too.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from confluent_kafka import Producer
from locust import User, events, task

from flagger.kafka import producer_config
from flagger.settings import load_settings
from flagger.wire.messages import Decision
from loadtest.open_loop_user import OpenLoopUser
from loadtest.payments import Checked
from loadtest.topic_reader import TopicReader

_POLL_S = 0.002
_TIMEOUT_S = 5.0
_decisions = msgspec.json.Decoder(Decision)


@dataclass(slots=True)
class _Waiting:
    """A payment that was sent; Locust makes the event one that lets other users go on."""

    decided: threading.Event = field(default_factory=threading.Event)
    source: str = ""


class _Doors:
    """One producer and one reader for all users; nothing here blocks their event loop."""

    def __init__(self) -> None:
        settings = load_settings()
        self._topic = settings.transactions_topic
        self._producer = Producer(producer_config(settings) | {"linger.ms": 0})
        self._reader = TopicReader(settings, settings.decisions_topic, from_end=True)
        while not self._reader.at_end:  # only now it is sure to stand at the end
            self._reader.read(0.1)
        self._waiting: dict[str, _Waiting] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def decide(self, transaction_id: str, customer_id: str, body: bytes) -> str:
        """Send a payment, wait for its decision, return its source; "": none came."""
        self._waiting[transaction_id] = waiting = _Waiting()
        try:
            self._producer.produce(self._topic, body, customer_id.encode())
            waiting.decided.wait(_TIMEOUT_S)
            return waiting.source
        finally:
            del self._waiting[transaction_id]

    def _read(self) -> None:
        while True:
            self._producer.poll(0)
            for value in self._reader.read(0).values:
                decision = _decisions.decode(value)
                if waiting := self._waiting.get(decision.transaction_id):
                    waiting.source = decision.decision_source
                    waiting.decided.set()
            time.sleep(_POLL_S)


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _open(environment: Any, **_: Any) -> None:
    environment.doors = _Doors()


class Producing(OpenLoopUser, User):
    """A producer that waits for the decision on each of its payments."""

    @task
    def pay(self) -> None:
        """Send one payment and wait for its decision."""
        due_s = self.next_turn_s()
        payment = self.arrivals.payments.new()
        customer_id = msgspec.json.decode(payment.body)["customer_id"]
        doors: _Doors = self.environment.doors
        sent_s = time.perf_counter()
        source = doors.decide(payment.transaction_id, customer_id, payment.body)
        done_s, fault = time.perf_counter(), "" if source else "no decision"
        self.record(due_s, sent_s, done_s, Checked(fault, source))
        self.tell_locust("Kafka", (done_s - due_s) * 1000, fault)
