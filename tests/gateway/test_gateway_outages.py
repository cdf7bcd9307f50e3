"""Triton, Kafka and Valkey are killed under load: answers in time, recovery, nothing lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import pytest

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.settings import Settings
from flagger.wire.messages import Transaction
from loadtest.crash_services import Services
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.topic_reader import read_topic
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.chaos, pytest.mark.timeout(150)]

DEADLINE_MS = 400
"""Four times the default: this machine has two cores, and restarts servers meanwhile."""
SLACK_S = 0.6
"""What the sending process itself may be late."""
EVERY_S = 0.02
AWAY_S = 2.0
RECOVERY_S = 20.0


@dataclass
class Answer:
    """What one request got: `source` is the decision's, or None without one."""

    transaction_id: str
    sent_s: float
    seconds: float
    status: int
    source: str | None


class Traffic:
    """Sends a payment every 20 ms, each from a thread of its own: slow answers hold nobody up."""

    def __init__(self, url: str) -> None:
        self.answers: list[Answer] = []
        self._url = url
        self._stop = threading.Event()
        self._senders: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_for(self, source: str, since_s: float, timeout_s: float) -> bool:
        """Return True once a payment sent after `since_s` was decided by `source`."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if any(a.source == source and a.sent_s > since_s for a in list(self.answers)):
                return True
            time.sleep(0.05)
        return False

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for sender in self._senders:
            sender.join()

    def _run(self) -> None:
        with httpx.Client(timeout=10, trust_env=False) as client:
            for number in range(1_000_000):
                if self._stop.wait(EVERY_S):
                    break
                sender = threading.Thread(target=self._send, args=(client, f"outage-{number}"))
                sender.start()
                self._senders.append(sender)
            for sender in self._senders:
                sender.join()

    def _send(self, client: httpx.Client, name: str) -> None:
        payment = {
            "transaction_id": name,
            "event_time": time.time_ns() // 1_000_000,
            "customer_id": f"customer-{name}",
            "terminal_id": "terminal-1",
            "amount": 12.5,
        }
        start_s = time.monotonic()
        response = client.post(f"{self._url}/v1/score", json=payment)
        seconds = time.monotonic() - start_s
        source = response.json().get("decision_source") if response.status_code == 200 else None
        self.answers.append(Answer(name, start_s, seconds, response.status_code, source))


def start_gateway(settings: Settings, log: Path) -> tuple[FlaggerProcess, str]:
    (port,) = free_ports(1)
    environment = environment_of(
        settings,
        {
            "FLAGGER_GATEWAY_AUTH": "off",
            "FLAGGER_GATEWAY_DEADLINE_MS": str(DEADLINE_MS),
            "FLAGGER_GATEWAY_FALLBACK": "rules",
            "FLAGGER_GATEWAY_DRAIN_MS": "0",
        },
    )
    process = FlaggerProcess(["gateway", "--port", str(port)], environment, log)
    url = f"http://127.0.0.1:{port}"
    wait_for_url(f"{url}/readyz", process)
    return process, url


def test_killed_servers_cost_no_answer_and_no_acknowledged_payment(
    own_stack: LocalStack, tmp_path: Path
) -> None:
    settings = own_stack.settings()
    ensure_topics(settings)
    during: dict[str, Counter[tuple[int, str | None]]] = {}
    with Services(own_stack, tmp_path) as services:
        gateway, url = start_gateway(settings, tmp_path / "gateway.log")
        traffic = Traffic(url)
        try:
            assert traffic.wait_for("model", 0.0, RECOVERY_S)
            for name in ("triton", "kafka", "valkey"):
                killed_s = time.monotonic()
                services.restart(name, away_s=AWAY_S)
                back_s = time.monotonic()
                assert traffic.wait_for("model", back_s, RECOVERY_S), f"no recovery after {name}"
                during[name] = Counter(
                    (a.status, a.source)
                    for a in list(traffic.answers)
                    if killed_s + 0.1 < a.sent_s < killed_s + AWAY_S
                )
        finally:
            traffic.stop()
        gateway.stop()
        logged = {
            message.transaction_id: message.decision
            for message in (
                msgspec.json.decode(value, type=Transaction)
                for value in read_topic(settings, settings.transactions_topic).values
            )
        }

    assert {answer.status for answer in traffic.answers} <= {200, 503}
    slow = [a for a in traffic.answers if a.seconds > DEADLINE_MS / 1000 + SLACK_S]
    assert slow == []
    # Without Triton the rules decide; without Valkey they have no history to look at, and a person
    # must; without Kafka nobody would hear of a decision, so the caller is told to come again.
    assert during["triton"].keys() == {(200, "rules")}
    assert during["kafka"].keys() == {(503, None)}
    assert during["valkey"].keys() == {(200, "fallback")}
    acknowledged = {a.transaction_id: a.source for a in traffic.answers if a.status == 200}
    assert acknowledged.keys() <= logged.keys()
    for name, source in acknowledged.items():
        decision = logged[name]
        assert decision is not None
        assert decision.decision_source == source
