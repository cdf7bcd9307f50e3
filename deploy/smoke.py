"""The smoke test of a deployment: payments in at both doors, each decided exactly once."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from flagger.errors import StackError
from flagger.kafka import client_config, producer_config
from flagger.kafka_access import require_access
from flagger.settings import Settings
from gateway.client import GatewayClient, GatewayError

__all__ = ["SmokePlan", "SmokeResult", "ask_gateway", "judge", "payment", "run_smoke"]

_KAFKA_S = 10.0
_POLL_S = 0.2
_SETTLE_S = 1.0
"""How long a second decision is waited for once each payment has its first one."""
_CUSTOMERS = 200
_TERMINALS = 20
"""Many of both: a burst of few would be flagged, and rightly."""
_GATEWAY_S = 10.0
"""Limit of one payment at the gateway, with further attempts where it says "not now"."""


@dataclass(frozen=True)
class SmokePlan:
    """What to send.

    Attributes:
        transactions: Payments over Kafka.
        gateway_url: Root of a gateway; None: that door is not tried.
        gateway_key: API key with the scope `score`.
        gateway_requests: Payments over HTTP.
        timeout_s: Longest that topics, and then decisions, are waited for.
    """

    transactions: int = 200
    gateway_url: str | None = None
    gateway_key: str = ""
    gateway_requests: int = 10
    timeout_s: float = 60.0


@dataclass
class SmokeResult:
    """What came back.

    Attributes:
        decisions: Transaction id -> the decisions on the topic.
        answers: Transaction id -> the gateway's decision.
        latencies_ms: Sending to reading, of payments over Kafka.
        failures: What is wrong; empty: the deployment works.
    """

    decisions: dict[str, list[str]] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def latency_ms(self, percent: float) -> float:
        """Return a percentile of the latencies; NaN without any."""
        return float(np.percentile(self.latencies_ms, percent)) if self.latencies_ms else np.nan


def payment(run: str, number: int) -> dict[str, Any]:
    """Return a payment of a run."""
    return {
        "transaction_id": f"{run}-{number}",
        "event_time": time.time_ns() // 1_000_000,
        "customer_id": f"smoke-customer-{number % _CUSTOMERS}",
        "terminal_id": f"smoke-terminal-{number % _TERMINALS}",
        "amount": 5.0 + number % 50,
        "channel": "ecom",
    }


def _reader_at_end(settings: Settings, timeout_s: float) -> Consumer:
    """Return a reader that sees what is decided from now on.

    Raises:
        StackError: Kafka does not answer, or the topic is not there in time.
    """
    config = {"group.id": "flagger-smoke", "enable.auto.commit": False}
    reader = Consumer(client_config(settings) | config | {"isolation.level": "read_committed"})
    topic, deadline_s = settings.decisions_topic, time.monotonic() + timeout_s
    try:
        require_access(settings, AdminClient, KafkaException)
        while True:
            try:
                found = reader.list_topics(topic, timeout=_KAFKA_S).topics[topic]
                if found.error is None and found.partitions:
                    break
                why = str(found.error)
            except KafkaException as error:
                why = str(error)
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"Topic {topic} on {settings.kafka_bootstrap_servers} was not there in "
                    f"{timeout_s:.0f} s ({why}). Is a streamer running? It creates the topics."
                )
            time.sleep(_POLL_S)
        places = [TopicPartition(topic, p) for p in found.partitions]
        for place in places:
            _, place.offset = reader.get_watermark_offsets(place, timeout=_KAFKA_S)
        reader.assign(places)
    except BaseException:
        reader.close()
        raise
    return reader


def _send(settings: Settings, run: str, n: int) -> dict[str, float]:
    """Send payments over Kafka; return id -> when, monotonic seconds."""
    failed: list[str] = []
    producer = Producer(producer_config(settings))
    try:
        producer.list_topics(settings.transactions_topic, timeout=_KAFKA_S)  # connects
    except KafkaException as error:
        raise StackError(f"Kafka does not answer: {error}.") from error
    sent: dict[str, float] = {}
    for number in range(n):
        one = payment(run, number)
        sent[one["transaction_id"]] = time.monotonic()
        producer.produce(
            settings.transactions_topic,
            msgspec.json.encode(one),
            key=one["customer_id"],
            on_delivery=lambda error, _: failed.append(str(error)) if error else None,
        )
        producer.poll(0)
    left = producer.flush(_KAFKA_S)
    if left or failed:
        raise StackError(
            f"Kafka did not take {left + len(failed)} of {n} payments: "
            f"{failed[0] if failed else 'no answer'}."
        )
    return sent


def ask_gateway(plan: SmokePlan, url: str, run: str, result: SmokeResult) -> None:
    """Send the plan's payments to the gateway at `url`; write answers and failures down."""
    with GatewayClient(url, plan.gateway_key or None, timeout_s=_GATEWAY_S) as gateway:
        for number in range(plan.gateway_requests):
            sent = payment(f"{run}-http", number)
            try:
                answer = gateway.score(sent)
            except GatewayError as error:
                result.failures.append(f"gateway: {error}")
                return
            result.answers[sent["transaction_id"]] = answer.decision


def _collect(
    reader: Consumer, run: str, sent: dict[str, float], result: SmokeResult, timeout_s: float
) -> None:
    """Read decisions until each payment has one, and a little longer."""
    expected = sent.keys() | result.answers.keys()
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        message = reader.poll(_POLL_S)
        if message is None or message.error() is not None:
            continue
        found = msgspec.json.decode(message.value() or b"{}")
        name = found.get("transaction_id", "")
        if not name.startswith(run):
            continue  # another's
        if name in sent and name not in result.decisions:
            result.latencies_ms.append((time.monotonic() - sent[name]) * 1000)
        result.decisions.setdefault(name, []).append(found["decision"])
        if expected <= result.decisions.keys():
            deadline_s = min(deadline_s, time.monotonic() + _SETTLE_S)


def judge(sent: dict[str, float], result: SmokeResult) -> None:
    """Write what is wrong into the result; `sent` holds the ids of the payments over Kafka."""
    expected = sent.keys() | result.answers.keys()
    if missing := expected - result.decisions.keys():
        result.failures.append(f"{len(missing)} of {len(expected)} payments have no decision")
    if doubled := [name for name, decided in result.decisions.items() if len(decided) > 1]:
        result.failures.append(f"{len(doubled)} payments were decided more than once: {doubled[0]}")
    for name, answer in result.answers.items():
        if result.decisions.get(name, [answer]) != [answer]:
            result.failures.append(f"{name}: the gateway said {answer}, the topic says otherwise")


def run_smoke(
    settings: Settings, plan: SmokePlan, on_step: Callable[[str], None] = lambda _: None
) -> SmokeResult:
    """Send payments and read their decisions from the topic, as anybody else would.

    They are real payments of customers named `smoke-customer-*` at terminals `smoke-terminal-*`.

    Raises:
        StackError: Kafka does not answer, or has no topics in time.
    """
    run = f"smoke-{uuid.uuid4().hex[:12]}"
    result = SmokeResult()
    on_step(f"waiting for topic {settings.decisions_topic}")
    reader = _reader_at_end(settings, plan.timeout_s)
    try:
        if plan.gateway_url:
            on_step(f"sending {plan.gateway_requests} payments to {plan.gateway_url}")
            ask_gateway(plan, plan.gateway_url, run, result)
        # Last, because their time runs until they are read.
        on_step(f"sending {plan.transactions} payments over Kafka")
        sent = _send(settings, run, plan.transactions)
        on_step("reading decisions")
        _collect(reader, run, sent, result, plan.timeout_s)
    finally:
        reader.close()
    judge(sent, result)
    return result
