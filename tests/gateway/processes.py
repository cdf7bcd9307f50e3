"""A gateway as a process of its own, what it is sent and what it wrote."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from confluent_kafka import Consumer

from flagger.wire.messages import Transaction

ROOT = Path(__file__).parents[2]
READY_TIMEOUT_S = 60.0


class Process:
    """One gateway process and a client for it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = "from flagger.cli import main; main()"
        self.log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", command, "gateway", "--port", str(port)],
                env=environment,
                cwd=ROOT,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self.port = port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        deadline = time.monotonic() + READY_TIMEOUT_S
        answer = "nothing"
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                response = self.client.get("/readyz")
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            answer = response.text
            if response.status_code == 200:
                return
            time.sleep(0.2)
        self.stop(signal.SIGKILL)
        pytest.fail(f"the gateway did not become ready; it answered {answer}; {log.read_text()}")

    def stop(self, number: signal.Signals) -> int:
        """Send a signal and return the exit code."""
        self._process.send_signal(number)
        code = self._process.wait(timeout=20)
        self.client.close()
        return code


def body(transaction_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "transaction_id": transaction_id,
        "event_time": int(time.time() * 1000) - 60_000,
        "customer_id": f"c-{transaction_id}",
        "terminal_id": "m-1",
        "amount": 12.5,
    } | changes


def read_all(stack: Any, topic: str) -> list[Transaction]:
    """Return every message of the topic, read from its start."""
    consumer = Consumer(
        {
            "bootstrap.servers": stack.addresses.kafka_bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
        }
    )
    consumer.subscribe([topic])
    found: list[Transaction] = []
    ended: set[int] = set()
    deadline = time.monotonic() + 30
    while len(ended) < 4 and time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error() is not None:
            ended.add(message.partition())
            continue
        decoded = msgspec.json.decode(message.value(), type=Transaction)
        assert message.key() == decoded.customer_id.encode()
        found.append(decoded)
    consumer.close()
    assert len(ended) == 4
    return found
