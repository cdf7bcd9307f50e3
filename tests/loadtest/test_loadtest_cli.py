from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from html import unescape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import msgspec
import pytest
from click.testing import CliRunner

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.errors import ConfigurationError, StackError
from flagger.settings import Settings
from loadtest import highest_rate, load_stack
from loadtest.api_key import API_KEY_VARIABLE
from loadtest.load_stack import ASKED, GATEWAY, LoadPlan, started
from loadtest.loadtest_cli import loadtest
from loadtest.observe import metric_values
from loadtest.open_loop import load
from loadtest.recording import Recording

pytestmark = pytest.mark.usefixtures("_brief_warm_up")
SHORT = ("--duration", "2", "--rate", "30")


@pytest.fixture
def _brief_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_stack, "WARM_UP_S", 0.5)


class FakeGateway(BaseHTTPRequestHandler):
    """Decides at once, and differently each time that it is asked."""

    protocol_version = "HTTP/1.1"
    asked = 0
    keys: ClassVar[set[str | None]] = set()
    forgets = False
    delay_s = 0.0

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.delay_s)
        self.keys.add(self.headers["authorization"])
        FakeGateway.asked += 1
        decision = {
            "transaction_id": msgspec.json.decode(content)["transaction_id"],
            "decision": "approve",
            "decision_source": "model",
            "score": FakeGateway.asked / 1e6 if self.forgets else 0.5,
        }
        answer = msgspec.json.encode(decision)
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.send_header("server-timing", "state;dur=0.100, model;dur=0.200")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def fake_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeGateway) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "--rate"),
        (["--rate", "fast"], "--rate"),
        (["--duration", "0.5"], "--duration"),
        (["--repeats", "0"], "--repeats"),
        (["--stream-rate", "-1"], "--stream-rate"),
        (["--highest", "--flagged", "0.2"], "different scenarios"),
        (["--highest", "--shape", "ramp"], "different scenarios"),
        (["--highest", "--ask", "all"], "one rate"),
        (["--ask", "kafka", "--flagged", "0.2"], "no --ask"),
        (["--ask", "kafka", "--url", "http://localhost:1"], "no --ask"),
        (["--url", "localhost:8080"], "does not begin with http"),
        (["--url", "http://localhost:1", "--stream-rate", "10"], "no --url"),
        (["--url", "http://localhost:1", "--repository", "models"], "no --url"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(loadtest, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_without_a_live_model_it_says_what_to_do(tmp_path: Path) -> None:
    arguments = ["--repository", str(tmp_path / "models"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(loadtest, arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert "flagger export" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_locust_asks_at_the_rate_and_the_result_is_written(
    fake_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "a-key")
    FakeGateway.keys.clear()
    arguments = [*SHORT, "--out", str(tmp_path), "--url", fake_url]
    result = CliRunner().invoke(loadtest, arguments)
    recording = msgspec.json.decode((tmp_path / "recording-0.json").read_bytes(), type=Recording)
    assert len(recording.due_s) == 60
    due_s = sorted(recording.due_s)
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(due_s)]
    assert max(gaps_s) == pytest.approx(1 / 30, rel=1e-3)
    assert recording.failures == {}
    assert FakeGateway.keys == {"Bearer a-key"}
    assert recording.sources == {"model": 60}
    assert all(s >= d for s, d in zip(recording.sent_s, recording.due_s, strict=True))
    written = json.loads((tmp_path / "gateway-open-loop.json").read_text())
    assert written["figures"]["model p50"]["median"] == 0.2
    assert (result.exit_code == 0) == (written["settings"]["verdicts"] == ["PASS"])
    assert result.exit_code == (0 if "PASS" in result.output else 1)


def test_an_injected_delay_fails_the_run(
    fake_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGateway, "delay_s", 0.15)
    arguments = [*SHORT, "--out", str(tmp_path), "--url", fake_url]
    result = CliRunner().invoke(loadtest, arguments)
    assert result.exit_code == 1
    written = json.loads((tmp_path / "gateway-open-loop.json").read_text())
    assert written["settings"]["verdicts"] == ["FAIL"]
    assert "the limit is 100 ms" in result.output


def test_an_unreachable_gateway_fails_the_run(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    result = CliRunner().invoke(loadtest, [*SHORT, "--out", str(tmp_path), "--url", url])
    assert result.exit_code == 1
    assert "60 of 60 requests failed: no answer" in " ".join(result.output.split())


def test_a_gateway_that_forgets_its_decisions_is_caught(
    fake_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGateway, "forgets", True)
    arguments = ["--duration", "2", "--rate", "200", "--out", str(tmp_path), "--url", fake_url]
    result = CliRunner().invoke(loadtest, arguments)
    assert result.exit_code == 1
    assert "a repeat answered differently" in " ".join(result.output.split())


def test_the_highest_rate_is_looked_for(
    fake_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(highest_rate, "MAX_RUNS", 3)
    arguments = [*SHORT, "--duration", "1", "--highest", "--out", str(tmp_path), "--url", fake_url]
    result = CliRunner().invoke(loadtest, arguments)
    written = json.loads((tmp_path / "gateway-highest-rate.json").read_text())
    runs = written["settings"]["runs"]
    passed = [run["rate_per_s"] for run in runs if run["verdict"] == "PASS"]
    assert runs[0]["rate_per_s"] == 30
    assert len(runs) == 3
    found = written["figures"]["highest rate that passed"]["median"]
    assert found == pytest.approx(max(passed, default=0), abs=0.1)
    assert result.exit_code == (0 if passed else 1)


@pytest.mark.parametrize("limit", [10.0, 99.0, 100.0, 101.0, 370.0, 900.0])
def test_a_search_ends_close_to_the_limit(limit: float) -> None:
    asked: list[float] = []

    def passes(value: float) -> bool:
        asked.append(value)
        return value <= limit

    found = highest_rate.search(passes, 100.0)
    assert found is not None
    assert found <= limit <= found * highest_rate.PRECISION
    assert len(asked) <= highest_rate.MAX_RUNS


def test_a_search_may_find_nothing() -> None:
    assert highest_rate.search(lambda _: False, 100.0) is None


@pytest.mark.stack
def test_a_server_that_ended_meanwhile_is_named(
    servers: Settings, published: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Triton the gateway falls back: no request fails, and the figures say nothing."""

    def ended(_: LocalStack) -> None:
        raise StackError("Triton ended with status -11")

    running = started(LoadPlan(tmp_path, rate_per_s=1, duration_s=1), published[0], servers=servers)
    assert running.__enter__().decided() == 0
    monkeypatch.setattr(LocalStack, "require_running", ended)
    with pytest.raises(StackError, match="Triton ended"):
        running.__exit__(None, None, None)


@pytest.mark.stack
@pytest.mark.timeout(180)
def test_everybody_who_may_be_asked_answers(
    servers: Settings, published: tuple[Path, str], tmp_path: Path
) -> None:
    plan = LoadPlan(tmp_path, rate_per_s=40, duration_s=1, asked=ASKED, shape="spike", gateways=2)
    with started(plan, published[0], servers=servers) as target:
        result, judgements = load(target, plan)
        requests = [
            metric_values(f"{url}/metrics", "flagger_gateway_responses_total", "route")["/v1/score"]
            for url in target.urls
        ]
    assert len(requests) == 2
    assert min(requests) >= 10
    assert len(judgements) == len(ASKED)
    for asked in ASKED:
        name = "recording-0.json" if asked == GATEWAY else f"recording-{asked}-0.json"
        found = msgspec.json.decode((tmp_path / name).read_bytes(), type=Recording)
        # How fast they are depends on what else this machine does now; a 503 means: too slow.
        assert set(found.failures) <= ({"status 503"} if asked == GATEWAY else set())
        assert len(found.due_s) == 19
        assert 0 < result.median(f"{asked} p50") <= result.median(f"{asked} p99")
    assert result.median("in-process CPU in-process") > 0
    gateway = msgspec.json.decode((tmp_path / "recording-0.json").read_bytes(), type=Recording)
    assert gateway.sources["model"] >= 10
    assert set(gateway.stages_ms) >= {"state", "features", "model", "claim", "log", "mark"}
    written = json.loads((tmp_path / "loadtest-compared-40.json").read_text())
    page = (tmp_path / "loadtest-compared-40.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert ("PASS:" in page) == (set(written["settings"]["verdicts"]) == {"PASS"})
    assert all(reason in unescape(page) for reason in written["settings"]["reasons"])
