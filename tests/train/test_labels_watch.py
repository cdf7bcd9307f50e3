"""`flagger drift watch` on a real Kafka."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.kafka import producer_config
from flagger.settings import Settings
from loadtest.own_topics import own_topic_names
from loadtest.processes import environment_of
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

DAY_MS = 86_400_000
TODAY_MS = int(time.time() * 1000) // DAY_MS * DAY_MS


class Watch:
    """A watch in a process of its own."""

    def __init__(self, settings: Settings, out: Path) -> None:
        (self.port,) = free_ports(1)
        command = [sys.executable, "-m", "flagger", "drift", "watch", "--maturity-days", "3"]
        command += ["--window-days", "5", "--metrics-port", str(self.port)]
        command += ["--least-recall", "0.7", "--least-frauds", "2"]
        self.log = out.open("wb")
        self.process = subprocess.Popen(
            command, env=environment_of(settings), stderr=self.log, cwd=Path(__file__).parents[2]
        )

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            return error.read().decode()
        except OSError:
            return ""

    def values(self) -> dict[str, float]:
        return {
            sample.name.removeprefix("flagger_labels_") + "".join(sample.labels.values()): (
                sample.value
            )
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
        }

    def wait(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None, "the watch has ended"
            assert time.monotonic() < deadline_s, (self.get("/readyz"), self.values())
            time.sleep(0.1)


@pytest.fixture
def own(stack: LocalStack) -> Settings:
    name = uuid.uuid4().hex[:8]
    return stack.settings().model_copy(update=own_topic_names(name))


@pytest.fixture
def watch(own: Settings, tmp_path: Path) -> Iterator[Watch]:
    running = Watch(own, tmp_path / "watch.log")
    yield running
    running.process.kill()
    running.process.wait()
    running.log.close()


def send(settings: Settings, days_ago: int, number: int, what: str, fraud: bool | None) -> None:
    """Send a decision and, unless None, its label."""
    name, time_ms = f"{days_ago}-{number}", TODAY_MS - days_ago * DAY_MS
    decision = {"transaction_id": name, "event_time": time_ms, "decision": what}
    producer = Producer(producer_config(settings))
    producer.produce(settings.decisions_topic, msgspec.json.encode(decision))
    if fraud is not None:
        label = {
            **{"transaction_id": name, "is_fraud": fraud, "source": "analyst"},
            **{"labelled_at": time_ms, "terminal_id": "m", "event_time": time_ms},
        }
        producer.produce(settings.labels_topic, msgspec.json.encode(label))
    assert producer.flush(30) == 0
    producer.close()


def test_figures_follow_the_topics(own: Settings, watch: Watch) -> None:
    watch.wait(lambda: "Kafka shows no topic" in watch.get("/readyz"))
    ensure_topics(own)
    for number, (what, fraud) in enumerate(
        [("decline", True), ("review", None), ("approve", True), ("approve", None)]
    ):
        send(own, 4, number, what, fraud)
    send(own, 2, 0, "approve", True)  # too young to be judged
    send(own, 0, 0, "approve", None)
    watch.wait(lambda: watch.values().get("frauds") == 2)
    assert json.loads(watch.get("/readyz"))["status"] == "ok"
    found = watch.values()
    assert (found["precision"], found["recall"]) == (0.5, 0.5)
    assert (found["decisions"], found["flagged"], found["caught"]) == (4, 2, 1)
    assert (found["alarmrecall"], found["alarmprecision"]) == (1, 0)
    assert found["newest_judged_day_timestamp_seconds"] == (TODAY_MS - 4 * DAY_MS) / 1000

    send(own, 3, 0, "review", True)  # late decisions and their label, while it runs
    send(own, 3, 1, "decline", True)
    producer = Producer(producer_config(own))
    producer.produce(own.labels_topic, b"no label")
    assert producer.flush(30) == 0
    producer.close()
    watch.wait(lambda: watch.values().get("frauds") == 4)
    found = watch.values()
    assert found["recall"] == 0.75
    assert found["alarmrecall"] == 0
    assert found["judged_days"] == 2
    watch.wait(lambda: watch.values()[f"refused_total{own.labels_topic}"] == 1)
    watch.process.send_signal(signal.SIGTERM)
    assert watch.process.wait(20) == 0
