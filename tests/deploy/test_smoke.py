"""`flagger smoke` and `flagger health` against a streamer and a gateway that run, and do not."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from deploy.health_cli import health
from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from deploy.smoke import SmokePlan, SmokeResult, ask_gateway, judge, payment, run_smoke
from deploy.smoke_cli import smoke
from flagger.errors import StackError
from flagger.settings import ENV_PREFIX
from gateway.answers import Answer
from loadtest.api_key import make_key
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url


class Deployment:
    """A streamer and a gateway on topics of their own."""

    def __init__(self, stack: LocalStack, folder: Path) -> None:
        run = uuid.uuid4().hex[:8]
        own = {**own_topic_names(f"smoke-{run}"), "consumer_group": f"smoke-{run}"}
        url = f"{stack.addresses.valkey_url.rsplit('/', 1)[0]}/13"
        self.settings = stack.settings().model_copy(update={**own, "valkey_url": url})
        self.key, keys = make_key(folder)
        self.variables = environment_of(self.settings, keys)
        metrics, port = free_ports(2)
        self.streamer_url = f"http://127.0.0.1:{metrics}"
        self.gateway_url = f"http://127.0.0.1:{port}"
        self.streamer = FlaggerProcess(
            ["stream", "--metrics-port", str(metrics)], self.variables, folder / "streamer.log"
        )
        wait_for_url(f"{self.streamer_url}/readyz", self.streamer)
        self.gateway = FlaggerProcess(
            ["gateway", "--port", str(port)], self.variables, folder / "gateway.log"
        )
        wait_for_url(f"{self.gateway_url}/readyz", self.gateway)

    def stop(self) -> None:
        self.streamer.kill()
        self.gateway.kill()


@pytest.fixture(scope="module")
def deployment(
    published: tuple[Path, str], stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    running = Deployment(stack, tmp_path_factory.mktemp("smoke"))
    yield running
    running.stop()


def run(deployment: Deployment, *arguments: str) -> Result:
    ours = {k: v for k, v in deployment.variables.items() if k.startswith(ENV_PREFIX)}
    return CliRunner(env=ours).invoke(smoke, list(arguments))


@pytest.mark.stack
def test_a_deployment_that_works(deployment: Deployment, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{deployment.key}\n")
    done = run(
        deployment, "--transactions", "50", "--gateway", deployment.gateway_url,
        "--key-file", str(tmp_path / "key"), "--timeout-s", "30",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "50 payments over Kafka: p50" in done.output
    assert "10 over the gateway" in done.output


@pytest.mark.stack
def test_a_gateway_that_refuses_is_said(deployment: Deployment) -> None:
    done = run(deployment, "--transactions", "5", "--gateway", deployment.gateway_url)
    assert done.exit_code == 1
    assert "FAILED gateway: The gateway answered 401" in done.output


@pytest.mark.stack
def test_health_of_what_runs(deployment: Deployment) -> None:
    for service, url in (
        ("streamer", deployment.streamer_url),
        ("gateway", deployment.gateway_url),
    ):
        for arguments in ([service, "--url", url], [service, "--url", url, "--ready"]):
            done = CliRunner().invoke(health, arguments)
            assert done.exit_code == 0, done.output


@pytest.mark.stack
def test_health_of_triton(stack: LocalStack) -> None:
    url = f"http://{stack.addresses.triton_http_url}"
    # Whatever an earlier test had it refuse: see tests/export/test_served.py.
    for arguments in (["triton", "--url", url], ["triton", "--url", url, "--ready"]):
        done = CliRunner().invoke(health, arguments)
        assert done.exit_code == 0, done.output


@pytest.mark.stack
def test_without_a_streamer_there_are_no_topics(stack: LocalStack) -> None:
    settings = stack.settings().model_copy(update={"decisions_topic": "smoke-nowhere"})
    with pytest.raises(StackError, match="Is a streamer running"):
        run_smoke(settings, SmokePlan(timeout_s=1))


def test_health_of_what_does_not_run() -> None:
    (port,) = free_ports(1)
    done = CliRunner().invoke(health, ["gateway", "--url", f"http://127.0.0.1:{port}"])
    assert done.exit_code == 1
    assert "does not answer" in done.output
    assert CliRunner().invoke(health, ["gateway", "--url", "localhost:80"]).exit_code == 2


def test_a_gateway_that_is_busy_is_asked_again() -> None:
    asked: list[str] = []
    answer = Answer(
        transaction_id="run-http-0", decision="approve", decision_source="model", score=0.1,
        reasons=[], reason_codes=[], model="fraud_fil", model_version="1", policy_version="1",
        latency_ms=5.0,
    )  # fmt: skip

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append(msgspec.json.decode(body)["transaction_id"])
            said = msgspec.json.encode(answer) if len(asked) > 1 else b"{}"
            self.send_response(200 if len(asked) > 1 else 503)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        result = SmokeResult()
        plan = SmokePlan(gateway_requests=1)
        ask_gateway(plan, f"http://127.0.0.1:{server.server_port}", "run", result)
        server.shutdown()
        thread.join()
    assert result.failures == []
    assert list(result.answers.values()) == ["approve"]
    assert len(asked) == 2
    assert len(set(asked)) == 1  # the same payment


def test_a_run_is_no_burst_of_few() -> None:
    """Else it would be flagged, and analysts would find it on their desk."""
    sent = [payment("run", number) for number in range(SmokePlan().transactions)]
    assert len({one["customer_id"] for one in sent}) == len(sent)
    assert max(Counter(one["terminal_id"] for one in sent).values()) <= 10


def test_what_is_judged() -> None:
    sent = {"a": 0.0, "b": 0.0, "c": 0.0}
    result = SmokeResult(
        decisions={"a": ["approve"], "b": ["approve", "approve"], "d": ["review"]},
        answers={"d": "approve"},
    )
    judge(sent, result)
    text = "; ".join(result.failures)
    assert "1 of 4 payments have no decision" in text
    assert "1 payments were decided more than once: b" in text
    assert "d: the gateway said approve, the topic says otherwise" in text
    good = SmokeResult(decisions={"a": ["approve"]})
    judge({"a": 0.0}, good)
    assert good.failures == []
