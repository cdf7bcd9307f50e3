"""Every panel and rule on a real Prometheus that scrapes running services and Triton."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from confluent_kafka import Producer

from deploy.local.server import Server, free_ports
from deploy.local.stack import LocalStack
from flagger import __version__
from flagger.kafka import producer_config
from grafana.binaries import find_binary
from grafana.generate import boards_as_objects
from loadtest.alert_sinks import WebhookSink
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

DEADLINE_S = 45.0
TOPICS = ("transactions", "decisions", "alerts", "labels", "activity", "dead_letter")
ALERT_RULES = """
[receiver.webhook]
url_env = "WEBHOOK"
[[rule]]
name = "all"
receivers = ["webhook"]
digest_every_s = 1
"""
RULEBOOK = """
version = "1"
[[rule]]
name = "large"
decision = "review"
reason = "9,000 or more"
when = [{ feature = "amount", at_least = 9000 }]
"""
"""Whether the model flags a large payment depends on the hour; there must be flags."""
BOARDS = boards_as_objects()
METRIC = re.compile(r"\b(?:flagger_|nv_|process_)\w+")
"""Names as the services export them; names with colons are recording rules."""


@dataclass
class Monitoring:
    """A Prometheus at work, and the alerts that it has sent to its Alertmanager."""

    url: str
    sent: list[dict[str, Any]]
    jobs: set[str]

    def ask(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False)
        body = response.json()
        assert body["status"] == "success", (parameters, body)
        return body["data"]

    def query(self, expr: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=expr)["result"]
        return found


class Payments:
    """Sends payments over Kafka and the gateway until it is told to stop; one of each is bad."""

    def __init__(self, producer: Producer, topic: str, gateway: str) -> None:
        self._producer, self._topic, self._gateway = producer, topic, gateway
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Payments:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with httpx.Client(trust_env=False) as client:
            client.post(f"{self._gateway}/v1/score", json={"amount": -1})
            while not self._stop.wait(0.05):
                number += 1
                payment = {
                    "transaction_id": f"monitoring-{number}",
                    "event_time": time.time_ns() // 1_000_000,
                    "customer_id": f"customer-{number % 20}",
                    "terminal_id": f"terminal-{number % 5}",
                    "amount": 10_000.0 if number % 10 == 0 else 12.5,
                }
                if number % 5 == 0:
                    client.post(f"{self._gateway}/v1/score", json=payment)
                    continue
                # A message that nobody can read, twice a second: rate() misses a counter's first.
                value = b"no json" if number % 10 == 1 else json.dumps(payment).encode()
                self._producer.produce(self._topic, value, key=payment["customer_id"])
                self._producer.poll(0)
        self._producer.flush(10)


@pytest.fixture(scope="module")
def sink() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Return (host:port, received alerts) of what takes alerts as Alertmanager's API v2 does.

    Not Alertmanager itself: Debian's looks for its templates at a fixed place of the system.
    """
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == "/api/v2/alerts"
            received.extend(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"127.0.0.1:{http.server_address[1]}", received
        http.shutdown()
        thread.join()


def start_prometheus(
    folder: Path, files: Path, targets: dict[str, str], alertmanager: str
) -> tuple[str, Server]:
    """Start Prometheus on the shipped files with the addresses of this run; return its URL, too."""
    (port,) = free_ports(1)
    config = yaml.safe_load((files / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(files / "rules" / "*.yml")]
    config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
    assert {job["job_name"] for job in config["scrape_configs"]} == set(targets)
    for job in config["scrape_configs"]:
        job["static_configs"][0]["targets"] = [targets[job["job_name"]]]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    prometheus = Server(
        "Prometheus",
        [
            str(find_binary("prometheus")),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
            # An alert that fires before the Alertmanager is known is sent again after this.
            "--rules.alert.resend-delay=1s",
        ],
        folder / "prometheus.log",
    )
    return f"http://127.0.0.1:{port}", prometheus


@pytest.fixture(scope="module")
def monitoring(
    stack: LocalStack,
    prometheus_files: Path,
    sink: tuple[str, list[dict[str, Any]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Monitoring]:
    folder = tmp_path_factory.mktemp("monitoring")
    stream_port, gateway_port, alerts_port, desk_port, labels_port = free_ports(5)
    base = stack.settings()
    names = {f"{topic}_topic": f"{topic}-monitoring" for topic in TOPICS}
    names |= {"consumer_group": "monitoring", "gateway_auth": "off"}
    names["valkey_url"] = f"{(base.valkey_url or '').rsplit('/', 1)[0]}/15"
    settings = base.model_copy(update=names)
    ensure_topics(settings)
    environment = environment_of(settings, {f"FLAGGER_{n.upper()}": v for n, v in names.items()})
    webhook = WebhookSink()
    environment |= {"WEBHOOK": webhook.url, "FLAGGER_ALERTS_GROUP": "monitoring-alerts"}
    environment["FLAGGER_CASE_STORE_URL"] = f"sqlite:///{folder / 'cases.db'}"
    environment["FLAGGER_RULEBOOK"] = str(folder / "rulebook.toml")
    (folder / "alerts.toml").write_text(ALERT_RULES)
    (folder / "rulebook.toml").write_text(RULEBOOK)
    targets = {
        "flagger-streamer": f"127.0.0.1:{stream_port}",
        "flagger-gateway": f"127.0.0.1:{gateway_port}",
        "flagger-alerts": f"127.0.0.1:{alerts_port}",
        "flagger-desk": f"127.0.0.1:{desk_port}",
        "flagger-labels": f"127.0.0.1:{labels_port}",
        "triton": urlsplit(stack.addresses.triton_metrics_url).netloc,
    }
    streamer = FlaggerProcess(
        ["stream", "--metrics-port", str(stream_port)], environment, folder / "streamer.log"
    )
    gateway = FlaggerProcess(
        ["gateway", "--port", str(gateway_port)], environment, folder / "gateway.log"
    )
    command = ["alerts", "run", "--file", str(folder / "alerts.toml")]
    alerts = FlaggerProcess(
        [*command, "--metrics-port", str(alerts_port)], environment, folder / "alerts.log"
    )
    desk = FlaggerProcess(
        ["desk", "consume", "--metrics-port", str(desk_port)], environment, folder / "desk.log"
    )
    labels = FlaggerProcess(
        ["drift", "watch", "--metrics-port", str(labels_port)], environment, folder / "labels.log"
    )
    server: Server | None = None
    try:
        gateway_url = f"http://127.0.0.1:{gateway_port}"
        wait_for_url(f"http://127.0.0.1:{stream_port}/readyz", streamer)
        wait_for_url(f"{gateway_url}/readyz", gateway)
        wait_for_url(f"http://127.0.0.1:{alerts_port}/readyz", alerts)
        wait_for_url(f"http://127.0.0.1:{desk_port}/readyz", desk)
        wait_for_url(f"http://127.0.0.1:{labels_port}/readyz", labels)
        url, server = start_prometheus(folder, prometheus_files, targets, sink[0])
        producer = Producer(producer_config(settings))
        with Payments(producer, settings.transactions_topic, gateway_url):
            server.wait_until(lambda: answers(f"{url}/-/ready"), 30)
            yield Monitoring(url, sink[1], set(targets))
    finally:
        if server is not None:
            server.stop()
        for process in (streamer, gateway, alerts, desk, labels):
            process.kill()
        webhook.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def concrete(expr: str) -> str:
    """Return a board's query as Grafana sends it for all instances over a short while."""
    expr = expr.replace("$__rate_interval", "10s")
    return re.sub(r"\$(?:instance|decision)\b", ".*", expr)


def wait_until_empty(left: Any, what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while missing := left():
        assert time.monotonic() < deadline_s, f"{what}: {missing}"
        time.sleep(0.5)


def test_every_panel_returns_data(monitoring: Monitoring) -> None:
    queries = {
        f"{name}: {panel['title']}: {target['expr']}": concrete(target["expr"])
        for name, board in BOARDS.items()
        for panel in board["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
        if "expr" in target  # SQL is tried in tests/review
    }
    assert len(queries) > 50

    def without_data() -> list[str]:
        for label in [label for label, expr in queries.items() if monitoring.query(expr)]:
            del queries[label]
        return list(queries)

    wait_until_empty(without_data, "panels without data")


def test_every_name_and_label_in_a_query_exists(
    monitoring: Monitoring, prometheus_files: Path
) -> None:
    """`or vector(0)` gives data to a misspelt name, too: names are looked up one by one."""
    text = json.dumps(BOARDS)
    text += "".join(path.read_text() for path in (prometheus_files / "rules").glob("*.yml"))
    names = set(METRIC.findall(text))
    assert len(names) > 40
    known = set(monitoring.ask("metadata"))
    series = set(monitoring.ask("label/__name__/values"))
    # A counter with labels has no series before its first event, but is announced.
    assert {
        name for name in names if name not in series and name.removesuffix("_total") not in known
    } == set()
    recorded = set(re.findall(r"\bflagger:\w+:\w+", text))
    wait_until_empty(
        lambda: recorded - set(monitoring.ask("label/__name__/values")), "rules without data"
    )


def test_both_doors_count_the_scores_of_what_they_decide(monitoring: Monitoring) -> None:
    """Each score of 0 to 1 is in a bucket; what the gateway's model decided is counted there."""

    def wrong() -> list[str]:
        found = []
        for door in ("streamer", "gateway"):
            counts = [
                monitoring.query(f"sum({name}) > 0")
                for name in (
                    f"flagger_{door}_score_count",
                    f'flagger_{door}_score_bucket{{le="1.0"}}',
                )
            ]
            if not all(counts) or counts[0][0]["value"][1] != counts[1][0]["value"][1]:
                found.append(door)
        same = monitoring.query(
            "flagger_gateway_score_count >= on(instance) "
            'sum by (instance) (flagger_gateway_decisions_total{decision_source="model"}) > 0'
        )
        return found if same else [*found, "as many scores as decisions"]

    wait_until_empty(wrong, "scores")


def test_annotations_and_variables_are_queries_that_prometheus_takes(
    monitoring: Monitoring,
) -> None:
    for board in BOARDS.values():
        for annotation in board["annotations"]["list"]:
            monitoring.query(annotation["expr"])
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                assert found
                assert monitoring.query(f"count by ({found[2]}) ({found[1]})")


def test_the_version_that_a_door_begins_with_is_marked(monitoring: Monitoring) -> None:
    """Both doors have just begun: each must give a mark of the last minutes."""
    (query,) = {
        annotation["expr"]
        for board in BOARDS.values()
        for annotation in board["annotations"]["list"]
        if annotation["name"] == "Model version begins"
    }
    now_s = time.time()
    marks = monitoring.ask(
        "query_range", query=query, start=str(now_s - 180), end=str(now_s), step="1"
    )["result"]
    assert {mark["metric"]["job"] for mark in marks} == {"flagger-streamer", "flagger-gateway"}
    assert all(mark["metric"]["version"] for mark in marks)


def test_the_build_that_a_service_begins_with_is_marked(monitoring: Monitoring) -> None:
    """All have just begun, and Prometheus has never seen them before."""
    (query,) = {
        annotation["expr"]
        for board in BOARDS.values()
        for annotation in board["annotations"]["list"]
        if annotation["name"] == "Deploys"
    }
    services = {job for job in monitoring.jobs if job != "triton"}

    def unmarked() -> set[str]:
        now_s = time.time()
        marks = monitoring.ask(
            "query_range", query=query, start=str(now_s - 180), end=str(now_s), step="1"
        )["result"]
        assert {mark["metric"]["version"] for mark in marks} <= {__version__}
        return services - {mark["metric"]["job"] for mark in marks}

    wait_until_empty(unmarked, "services without a mark")


def test_rules_are_evaluated_without_errors(monitoring: Monitoring) -> None:
    groups = monitoring.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) > 30
    assert [rule["name"] for rule in rules if rule["health"] == "err"] == []


def test_alerts_fire_and_are_sent_with_their_words(monitoring: Monitoring) -> None:
    expected = {"FlaggerWatchdog", "FlaggerDeadLetters"}
    wait_until_empty(
        lambda: expected - {alert["labels"]["alertname"] for alert in monitoring.sent},
        "alerts that were not sent",
    )
    (words, *_) = (
        alert["annotations"]["description"]
        for alert in monitoring.sent
        if alert["labels"]["alertname"] == "FlaggerDeadLetters"
    )
    assert re.match(r"About [\d.]+ messages of the last ten minutes", words)
