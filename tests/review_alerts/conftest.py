"""What receivers look like from the other side: a mail server, a webhook, and a topic of alerts."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.stack import LocalStack
from flagger.alert import Alert
from flagger.kafka import client_config, producer_config
from flagger.settings import Settings
from loadtest.processes import FlaggerProcess, environment_of

PARTITIONS = 2


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let Apprise's mail plug-in try for `imghdr`, which Python 3.11 warns of."""
    item.add_marker(pytest.mark.filterwarnings("ignore:'imghdr' is deprecated"))


class Hook:
    """A webhook on this machine; `status` is what it answers, `told` what it took."""

    def __init__(self) -> None:
        self.status = 200
        self.told: list[dict[str, Any]] = []
        self.refused = 0
        self.delay_s = 0.0
        self.answers_after_s = 0.0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(hook.delay_s)
                if hook.status == 200:
                    hook.told.append(body)
                else:
                    hook.refused += 1
                time.sleep(hook.answers_after_s)
                self.send_response(hook.status)
                self.end_headers()

            def do_GET(self) -> None:
                hook.told.append({"path": self.path})
                self.send_response(hook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def alerts(self) -> int:
        """How many alerts the messages that were taken tell of."""
        return sum(alerts_in(message["title"]) for message in self.told)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def alerts_in(title: str) -> int:
    first = title.split()[0].replace(",", "")
    return int(first) if first.isdigit() else 1


class Mail:
    """A mail server on this machine."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.told: list[bytes] = []
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self._controller.start()

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        self.told.append(envelope.content or b"")  # type: ignore[arg-type]
        return "250 OK"

    def close(self) -> None:
        self._controller.stop()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def mail() -> Iterator[Mail]:
    made = Mail()
    yield made
    made.close()


class Alerts:
    """A topic of alerts, and services that tell of them."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self._folder = folder
        self._processes: list[FlaggerProcess] = []
        self._sent = 0
        admin = AdminClient(client_config(settings))
        topics = [settings.alerts_topic, settings.transactions_topic, settings.decisions_topic]
        made = admin.create_topics([NewTopic(name, PARTITIONS) for name in topics])
        for future in made.values():
            future.result(30)

    def send(self, n: int, *, partition: int | None = None, **fields: Any) -> None:
        """Write n alerts, numbered on."""
        producer = Producer(producer_config(self.settings))
        for number in range(self._sent, self._sent + n):
            value = msgspec.json.encode(alert(number, **fields))
            where = number % PARTITIONS if partition is None else partition
            producer.produce(self.settings.alerts_topic, value, partition=where)
            producer.poll(0)
        assert producer.flush(30) == 0
        producer.close()
        self._sent += n

    def start(self, file: Path, *, port: int = 0, **secrets: str) -> FlaggerProcess:
        """Start `flagger alerts run` as a process."""
        environment = environment_of(self.settings, secrets)
        process = FlaggerProcess(
            ["alerts", "run", "--file", str(file), "--metrics-port", str(port)],
            environment,
            self.log,
        )
        self._processes.append(process)
        return process

    @property
    def log(self) -> Path:
        return self._folder / "alerts.log"

    def close(self) -> None:
        for process in self._processes:
            process.kill()


def alert(number: int, **fields: Any) -> Alert:
    given: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "customer_id": f"c{number}",
        "event_time": 1_767_225_600_000 + number * 1_000,
        "amount": 100.0,
        "decision": "decline",
        "decision_source": "model",
        "score": 0.97,
        "reasons": ["fraud score 0.9700 reaches the decline threshold 0.9000"],
        "reason_codes": ["score"],
        "terminal_id": f"m{number % 3}",
        "currency": "EUR",
        "channel": "ecom",
        "country": "FR",
    }
    return Alert(**given | fields)


@pytest.fixture
def alerts(stack: LocalStack, tmp_path: Path) -> Iterator[Alerts]:
    name = tmp_path.name.replace("_", "-")
    names = {
        f"{topic}_topic": f"{topic}-{name}" for topic in ("alerts", "transactions", "decisions")
    }
    settings = stack.settings().model_copy(update={**names, "alerts_group": f"group-{name}"})
    made = Alerts(settings, tmp_path)
    yield made
    made.close()
