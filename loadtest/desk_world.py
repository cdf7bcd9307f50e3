"""Streamer, the desk's consumer and its pages as processes, and somebody who pays."""

from __future__ import annotations

import secrets
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import msgspec
import valkey
from confluent_kafka import Producer

from deploy.local.server import free_ports
from flagger.errors import StackError
from flagger.features import FeatureContract
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.wire.messages import Decision, Label, parse_label
from loadtest.crash_world import wait_until
from loadtest.offline import LogReplay, replay_log
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, variables_of, wait_for_url
from loadtest.topic_reader import Records, read_topic
from streamer.topics import ensure_topics

__all__ = ["DAY_MS", "SAFE_TERMINAL", "USERS", "DeskWorld"]

USERS = ("ann", "bob")
SAFE_TERMINAL = "safe"
"""Payments there are approved, by a list."""
DAY_MS = 86_400_000
_ARRIVE_S = 10.0
_WARM_UP_S = 60.0
_RULEBOOK = f"""
version = "1"
[[list]]
name = "safe shops"
action = "allow"
field = "terminal_id"
values = ["{SAFE_TERMINAL}"]
reason = "known to be safe"
"""
_SERVICES = (
    (["stream", "--metrics-port"], "readyz"),
    (["desk", "consume", "--metrics-port"], "readyz"),
    (["desk", "serve", "--port"], "healthz"),
)
"""`flagger` commands, the port follows; and where each says that it is ready."""


class DeskWorld:
    """The services at work; a context manager that ends them.

    Args:
        base: Addresses of the servers, and the model repository: its thresholds decide what is
            flagged.
        name: Goes into the names of topics and group.
        database: Valkey database; what is in it is deleted.
        folder: For case store, users and logs.

    Attributes:
        settings: With topics and group of the world's own.
        url: The pages.
        password: Of every user.
    """

    def __init__(self, base: Settings, name: str, database: int, folder: Path) -> None:
        server = (base.valkey_url or "").rsplit("/", 1)[0]
        own = {"consumer_group": name, "partitions": 2, "valkey_url": f"{server}/{database}"}
        self.settings = base.model_copy(update=own_topic_names(name) | own)
        self.password = secrets.token_urlsafe()
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        self._port, self._folder = port, folder
        self._running = ExitStack()
        files = {
            "case_store_url": f"sqlite:///{folder / 'cases.db'}",
            "desk_users_file": folder / "users.json",
            "rulebook": folder / "rulebook.toml",
        }
        self._environment = environment_of(self.settings, variables_of(files))

    def __enter__(self) -> Self:
        ensure_topics(self.settings)
        client: Any = valkey.Valkey.from_url(self.settings.valkey_url or "")
        client.flushdb()
        client.close()
        (self._folder / "rulebook.toml").write_text(_RULEBOOK)
        for user in USERS:
            command = ["desk", "add-user", user, "--password-stdin"]
            subprocess.run(
                [sys.executable, "-m", "flagger", *command],
                env=self._environment,
                input=self.password,
                text=True,
                check=True,
            )
        try:
            self._start()
        except BaseException:
            self._running.close()
            raise
        return self

    def _warm_up(self) -> None:
        """Have one payment decided, which is no case: the first one compiles kernels."""
        self.pay("warm-up", terminal_id=SAFE_TERMINAL, customer_id="warm-up")
        settings = self.settings
        wait_until(
            lambda: len(read_topic(settings, settings.decisions_topic)) > 0,
            _WARM_UP_S,
            "The first decision",
        )

    def _start(self) -> None:
        ports = [*free_ports(len(_SERVICES) - 1), self._port]
        self._processes = []
        for (command, _), port in zip(_SERVICES, ports, strict=True):
            log = self._folder / f"{'-'.join(command[:-1])}.log"
            process = FlaggerProcess([*command, str(port)], self._environment, log)
            self._running.callback(process.kill)
            self._processes.append(process)
        for process, (_, path), port in zip(self._processes, _SERVICES, ports, strict=True):
            wait_for_url(f"http://127.0.0.1:{port}/{path}", process)
        self._producer = Producer(producer_config(self.settings))
        self._running.callback(self._producer.close)
        self._warm_up()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._running:
            if kind is None:
                for process in self._processes:
                    process.stop()  # raises if one does not end well on a signal

    def pay(
        self, transaction_id: str, *, days_ago: float = 0, partition: int = -1, **values: object
    ) -> None:
        """Write a payment and wait until Kafka has it; values replace fields."""
        payment = {
            "transaction_id": transaction_id,
            "event_time": time.time_ns() // 1_000_000 - int(days_ago * DAY_MS),
            "customer_id": "c1",
            "terminal_id": "m1",
            "amount": 250.0,
            "currency": "EUR",
            "channel": "ecom",
            "country": "DE",
            **values,
        }
        self._producer.produce(
            self.settings.transactions_topic,
            msgspec.json.encode(payment),
            str(payment["customer_id"]),
            partition,
        )
        if self._producer.flush(_ARRIVE_S):
            raise StackError(f"Kafka did not take {transaction_id} in {_ARRIVE_S:.0f} s.")

    def labels(self, terminal: str) -> list[Label]:
        """Return the labels of a terminal's payments, in their order."""
        values = read_topic(self.settings, self.settings.labels_topic).values
        labels = [parse_label(value, time.time_ns() // 1_000_000) for value in values]
        return [label for label in labels if label.terminal_id == terminal]

    def wait_for_labels(self, terminal: str, outcomes: list[bool]) -> None:
        """Wait until the labels of a terminal's payments say so, in their order."""
        wait_until(
            lambda: [label.is_fraud for label in self.labels(terminal)] == outcomes,
            _ARRIVE_S,
            f"Labels {outcomes} of {terminal}",
        )

    def features_hash(self, transaction_id: str) -> str:
        """Return the fingerprint of the features that the streamer decided on."""
        found: list[str] = []

        def decided() -> bool:
            for value in read_topic(self.settings, self.settings.decisions_topic).values:
                decision = msgspec.json.decode(value, type=Decision)
                if decision.transaction_id == transaction_id:
                    found.append(decision.feature_hash)
            return bool(found)

        wait_until(decided, _ARRIVE_S, f"The decision of {transaction_id}")
        return found[0]

    def replay(self, contract: FeatureContract, *, labels: bool) -> LogReplay:
        """Compute the log's features offline, as if all labels or none had been known."""
        known = read_topic(self.settings, self.settings.labels_topic) if labels else None
        log = read_topic(self.settings, self.settings.transactions_topic)
        return replay_log(log, known or Records.concat([]), contract)
