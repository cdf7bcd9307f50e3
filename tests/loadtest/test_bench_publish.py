from __future__ import annotations

import contextlib
import functools
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.models import list_versions, live_version, load_version
from flagger.settings import ENV_PREFIX
from gateway.keys import KeyFile, new_key
from loadtest import bench_cli, bench_publish, load_stack
from loadtest.bench_cli import bench
from loadtest.bench_publish import PublishPlan, add_run, faults
from loadtest.bench_result import BenchResult
from loadtest.flag_more import flag_more
from loadtest.load_stack import Target
from loadtest.observe import ask_gateway, evenly_over
from loadtest.own_models import copy_repository, training_of_live
from loadtest.payments import APPROVED, Checked, PaymentMaker
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.recording import Recording
from loadtest.switches import PUBLISH, ROLL_BACK, Switch, find
from streamer.topics import ensure_topics

PER_S = 10
SWITCHES = [Switch(PUBLISH, "2", 102.0, 103.0), Switch(ROLL_BACK, "1", 106.0, 106.1)]


def recording(
    version_at: Callable[[float], str], fault_at: Callable[[float], str] = lambda _: ""
) -> Recording:
    """Ten seconds of requests, ten a second, each answered after 10 ms."""
    result = Recording(rate_per_s=PER_S, start_s=100.0, duration_s=10.0)
    for i in range(100):
        due_s = 100.0 + i / PER_S
        fault, version = fault_at(due_s), version_at(due_s)
        result.add(
            due_s=due_s,
            sent_s=due_s,
            done_s=due_s + 0.01,
            late_s=0.0,
            is_repeat=False,
            checked=Checked(fault) if fault else Checked("", "model", APPROVED, version),
            stages={},
        )
    return result


def followed_after(delay_s: float) -> Callable[[float], str]:
    """Answer as a gateway that looks at the pointer `delay_s` after each switch's end."""
    return lambda s: "2" if 103.0 + delay_s < s < 106.1 + delay_s else "1"


def test_a_run_without_failure_that_follows_passes() -> None:
    run = recording(followed_after(0.55))
    found = find(run, SWITCHES)
    assert faults(run, SWITCHES, found) == []
    assert found.took_s == pytest.approx([1.61, 0.71])
    assert found.answers == {"1": 69, "2": 31}
    # From 102 to the first answer of version 2, and from 106 to the first of version 1.
    assert sum(found.during) == 17 + 8
    result = BenchResult("publish-10", {})
    add_run(result, run, "1", SWITCHES, found)
    figures = {name: values[0] for name, values in result.runs.items()}
    assert (figures["requests"], figures["failures"], figures["answered"]) == (100, 0, 10.0)
    assert figures["answers of publish 1"] == 31
    assert figures["p99 during switches"] == pytest.approx(10.0)
    assert figures["publish to first answer, slowest"] == found.took_s[0]


@pytest.mark.parametrize(("at_s", "inside"), [(102.5, 1), (105.0, 0)])
def test_one_failure_fails_the_run_and_it_is_told_where(at_s: float, inside: int) -> None:
    run = recording(followed_after(0.55), lambda s: "status 503" if s == at_s else "")
    found = find(run, SWITCHES)
    told = faults(run, SWITCHES, found)
    assert told[0] == "1 of 100 requests failed: status 503."
    assert told[1].startswith(f"{inside} of the failures")
    result = BenchResult("publish-10", {})
    add_run(result, run, "1", SWITCHES, found)
    assert result.runs["failures"] == [1]
    assert result.runs["failed during switches"] == [inside]
    assert result.runs["failed outside of switches"] == [1 - inside]


def test_a_switch_that_no_answer_shows_fails_the_run() -> None:
    run = recording(lambda _: "1")
    found = find(run, SWITCHES)
    assert math.isnan(found.took_s[0])
    (told,) = faults(run, SWITCHES, found)
    assert told == "Switch 1 (publish, to version 2) was not followed: no answer names the version."


def test_an_answer_of_the_old_version_after_one_of_the_new_fails_the_run() -> None:
    run = recording(lambda s: "1" if s == 105.0 else followed_after(0.55)(s))
    (told,) = faults(run, SWITCHES, find(run, SWITCHES))
    assert told == "1 answers name another version than the one that was live."


def test_a_switch_after_the_measured_part_fails_the_run() -> None:
    late = [SWITCHES[0], replace(SWITCHES[1], end_s=110.5)]
    run = recording(followed_after(0.55))
    (told,) = faults(run, late, find(run, late))
    assert "Switch 2 (roll back, to version 1) was not within the measured part" in told


def test_no_request_at_all_fails_the_run() -> None:
    run = Recording(rate_per_s=PER_S, start_s=100.0, duration_s=10.0)
    assert "No request was answered" in faults(run, SWITCHES, find(run, SWITCHES))[0]


@pytest.fixture(scope="module")
def served(
    stack: LocalStack, small_training: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    """A Triton of its own: other tests must not see the versions that come and go here."""
    folder = tmp_path_factory.mktemp("published")
    repository = folder / "model_repository"
    export_model(small_training, repository, n_parity_rows=500)
    services = frozenset({"triton"})
    with LocalStack(folder / "home", model_repository=repository, services=services) as own:
        yield own


Serve = Callable[..., AbstractContextManager[Target]]


@pytest.fixture
def serve(
    stack: LocalStack, served: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Serve:
    """Return what runs a gateway on the shared Kafka and Valkey and on `served`."""
    monkeypatch.setattr(load_stack, "WARM_UP_S", 1.0)
    monkeypatch.setattr(bench_publish, "_LEAD_S", 1.0)

    @contextlib.contextmanager
    def running(key_per_s: float | None = None) -> Iterator[Target]:
        topic = f"transactions-{uuid.uuid4().hex}"
        own = {
            "transactions_topic": topic,
            "triton_url": served.addresses.triton_url,
            "model_repository": served.model_repository,
        }
        settings = stack.settings().model_copy(update=own)
        ensure_topics(settings)
        now_ms = time.time_ns() // 1_000_000
        key, text = new_key("bench", ("score",), now_ms, rate_per_s=key_per_s)
        KeyFile.open(tmp_path / "keys.json").put(key)
        (port,) = free_ports(1)
        variables = {
            f"{ENV_PREFIX}GATEWAY_KEYS_FILE": str(tmp_path / "keys.json"),
            f"{ENV_PREFIX}TRANSACTIONS_TOPIC": topic,
        }
        gateway = FlaggerProcess(
            ["gateway", "--port", str(port)],
            environment_of(settings, variables),
            tmp_path / "gateway.log",
        )
        try:
            wait_for_url(f"http://127.0.0.1:{port}/readyz", gateway)
            yield Target((f"http://127.0.0.1:{port}",), "", settings.triton_url or "", text)
            gateway.stop()
        finally:
            gateway.kill()

    return running


def publish(
    served: LocalStack, out: Path, monkeypatch: pytest.MonkeyPatch, gateway: Target
) -> Result:
    """Run the command against a gateway that is there, on the repository that it follows."""
    monkeypatch.setattr(bench_publish, "started", lambda *_: contextlib.nullcontext(gateway))
    monkeypatch.setattr(bench_publish, "copy_repository", lambda *_: served.model_repository)
    brief = functools.partial(PublishPlan, every_s=5.0)
    monkeypatch.setattr(bench_cli, "PublishPlan", brief)
    return CliRunner().invoke(
        bench, ["publish", "--rate", "10", "--switches", "1", "--out", str(out)]
    )


@pytest.mark.stack
def test_a_publish_and_a_roll_back_under_load(
    serve: Serve, served: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = live_version(served.model_repository)
    with serve() as gateway:
        ran = publish(served, tmp_path, monkeypatch, gateway)
    written = json.loads((tmp_path / "publish-10.json").read_text())
    figures = {name: figure["median"] for name, figure in written["figures"].items()}
    assert figures["requests"] == 130
    assert figures["answers of publish 1"] > 10
    assert figures["answers of the version before"] > 10
    assert figures["by another version than the live one"] == 0
    assert live_version(served.model_repository) == before
    assert len(list_versions(served.model_repository)) >= 2
    # A 503 means that this machine is busy with other tests now; then the command must fail.
    failures = figures["failures"]
    assert (ran.exit_code == 0) == (failures == 0) == (written["settings"]["verdicts"] == ["PASS"])


@pytest.mark.stack
def test_refused_requests_fail_the_command(
    serve: Serve, served: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(key_per_s=2.0) as gateway:
        ran = publish(served, tmp_path, monkeypatch, gateway)
    assert ran.exit_code == 1
    assert "requests failed: status 429" in ran.output
    written = json.loads((tmp_path / "publish-10.json").read_text())
    assert written["settings"]["verdicts"] == ["FAIL"]
    assert written["figures"]["failures"]["median"] > 50


@pytest.mark.stack
def test_a_lower_threshold_flags_the_wanted_share(
    serve: Serve, served: LocalStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.flag_more._ASKED", 1_000)
    monkeypatch.setattr("loadtest.flag_more._ASKING_S", 3.0)
    repository = served.model_repository
    with serve() as gateway:
        port = gateway.port
        threshold = flag_more(repository, port, gateway.api_key, 0.3)
        maker = PaymentMaker(uuid.uuid4().hex, seed=2, busy_share=0.3)
        bodies = [maker.new().body for _ in range(200)]
        turns = evenly_over(2.0, len(bodies))
        answers = ask_gateway(port, bodies, gateway.api_key, wait_for_turn=turns)
    assert load_version(repository, live_version(repository)).policy.review_threshold == threshold
    flagged = sum(answer.decision != "approve" for answer in answers)
    assert 20 <= flagged <= 120


def test_the_live_version_can_be_published_again(served: LocalStack, tmp_path: Path) -> None:
    repository = copy_repository(served.model_repository, tmp_path / "copy")
    training = training_of_live(repository, tmp_path / "training")
    live = live_version(repository)
    version = export_model(training, repository, n_parity_rows=500)
    assert live_version(repository) == version != live
    again = load_version(repository, version)
    assert again.contract == load_version(repository, live).contract
    assert live_version(served.model_repository) == live
