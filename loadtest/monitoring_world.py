"""All services under a real Prometheus and Alertmanager, with payments that keep them busy.

Prometheus and Alertmanager run on the shipped files. Changed are addresses, the times between
scrapes and evaluations (1 s), and how long an alert must hold before it fires (1 s instead of
minutes; promtool's tests keep the shipped times). Something is wrong with many of the payments and
services, so that many alerts have a reason to fire; see `FIRING`.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import yaml

from deploy.local.server import Server, free_ports, is_answered
from flagger.errors import StackError
from flagger.settings import Settings
from grafana.binaries import alertmanager_command, find_binary
from loadtest.alert_sinks import WebhookSink
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, variables_of, wait_for_url
from loadtest.troubled_payments import TroubledPayments
from streamer.topics import ensure_topics

__all__ = ["FIRING", "MonitoringWorld", "Notification"]

FIRING = {
    "FlaggerSloBurnFast": "two of seven messages are a minute old when they are written",
    "FlaggerSloBurnMedium": "the same",
    "FlaggerSloBurnSlow": "the same",
    "FlaggerTargetDown": "Prometheus scrapes a gateway that is not there",
    "FlaggerDeadLetters": "one of eight messages is no JSON",
    "FlaggerDecidesWithoutModel": "a rule flags large payments",
    "FlaggerBrakeEngaged": "every tenth payment is large, and the cap is lower",
    "FlaggerLateEvents": "one of seven payments is an hour older than its customer's newest",
    "FlaggerRulebookRefused": "the file of rules is broken once the services have begun",
    "FlaggerAlertsNotDelivered": "nothing listens at one of the receivers",
    "FlaggerCasesWait": "a payment was flagged five hours ago",
    "FlaggerFlagsRefused": "something on the alerts topic is no alert",
    "FlaggerWatchdog": "always",
}
"""Alert -> why it fires here."""

_NAME = "monitoring"
_DATABASE = 15
_COMMANDS = {
    "streamer": ["stream", "--metrics-port"],
    "gateway": ["gateway", "--port"],
    "alerts": ["alerts", "run", "--metrics-port"],
    "desk": ["desk", "consume", "--metrics-port"],
    "labels": ["drift", "watch", "--metrics-port"],
}
"""Service -> `flagger` command; the port follows."""
_DEADLINE_S = 45.0
_POLL_S = 0.5
_ALERT_RULES = """
[receiver.webhook]
url_env = "WEBHOOK"
[receiver.nobody]
url_env = "NOBODY"
[[rule]]
name = "all"
receivers = ["webhook", "nobody"]
digest_every_s = 1
"""
_RULEBOOK = """
version = "1"
[[rule]]
name = "large"
decision = "review"
reason = "9,000 or more"
when = [{ feature = "amount", at_least = 9000 }]
"""
"""Whether the model flags a large payment depends on the hour; there must be flags."""


@dataclass(frozen=True)
class Notification:
    """A message of Alertmanager's.

    Attributes:
        receiver: The last part of the webhook's path: `pager`, `tickets`, `dead-mans-switch`.
        body: As its documentation says of webhooks.
    """

    receiver: str
    body: dict[str, Any]

    @property
    def names(self) -> set[str]:
        """The alerts' names."""
        return {alert["labels"]["alertname"] for alert in self.body["alerts"]}


class MonitoringWorld:
    """The services at work; a context manager that ends them.

    Args:
        base: Addresses of the servers; topics and state are the world's own.
        triton_metrics_url: Triton's metrics page.
        files: Folder of Prometheus's files.
        folder: For logs and files of the world's own.

    Attributes:
        jobs: Prometheus's jobs.
    """

    def __init__(self, base: Settings, triton_metrics_url: str, files: Path, folder: Path) -> None:
        url = f"{(base.valkey_url or '').rsplit('/', 1)[0]}/{_DATABASE}"
        own = {"consumer_group": _NAME, "alerts_group": f"{_NAME}-alerts", "valkey_url": url}
        self._settings = base.model_copy(update=own_topic_names(_NAME) | own)
        self._files, self._folder = files, folder
        self._triton = urlsplit(triton_metrics_url).netloc
        self._notifications: list[Notification] = []
        self._running = ExitStack()
        self.jobs: set[str] = set()
        self._url = ""

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def notifications(self) -> list[Notification]:
        """What Alertmanager has sent so far."""
        return list(self._notifications)

    def ask(self, path: str, **parameters: str) -> Any:
        """Return what Prometheus's API answers."""
        response = httpx.get(f"{self._url}/api/v1/{path}", params=parameters, trust_env=False)
        body = response.json()
        if body["status"] != "success":
            raise ValueError(f"{parameters}: {body}")
        return body["data"]

    def query(self, expr: str) -> list[Any]:
        """Return the series of a query now."""
        found: list[Any] = self.ask("query", query=expr)["result"]
        return found

    def wait_until_empty(self, left: Callable[[], Any], what: str) -> None:
        """Wait until `left` finds nothing any more; raises StackError with `what` is left."""
        deadline_s = time.monotonic() + _DEADLINE_S
        while missing := left():
            if time.monotonic() > deadline_s:
                raise StackError(f"{what}, after {_DEADLINE_S:.0f} s: {missing}")
            time.sleep(_POLL_S)

    def _start(self) -> None:
        ensure_topics(self._settings)
        ports = dict(zip(_COMMANDS, free_ports(len(_COMMANDS)), strict=True))
        self._start_services(ports)
        targets = {f"flagger-{name}": [f"127.0.0.1:{port}"] for name, port in ports.items()}
        (nobody,) = free_ports(1)
        targets["flagger-gateway"].append(f"127.0.0.1:{nobody}")
        targets["triton"] = [self._triton]
        self.jobs = set(targets)
        self._start_prometheus(targets, self._start_alertmanager())
        gateway_url = f"http://127.0.0.1:{ports['gateway']}"
        self._running.callback(TroubledPayments(self._settings, gateway_url).close)
        (self._folder / "rulebook.toml").write_text("version = ")

    def _start_services(self, ports: dict[str, int]) -> None:
        folder = self._folder
        webhook = WebhookSink()
        self._running.callback(webhook.close)
        (closed,) = free_ports(1)
        (folder / "alerts.toml").write_text(_ALERT_RULES)
        (folder / "rulebook.toml").write_text(_RULEBOOK)
        changed = {
            "gateway_auth": "off",
            "case_store_url": f"sqlite:///{folder / 'cases.db'}",
            "alerts_file": folder / "alerts.toml",
            "rulebook": folder / "rulebook.toml",
            "brake_flag_share": 0.02,
            "brake_min_decisions": 20,
        }
        environment = environment_of(self._settings, variables_of(changed))
        environment |= {"WEBHOOK": webhook.url, "NOBODY": f"json://127.0.0.1:{closed}/"}
        processes = {}
        for name, command in _COMMANDS.items():
            process = FlaggerProcess(
                [*command, str(ports[name])], environment, folder / f"{name}.log"
            )
            self._running.callback(process.kill)
            processes[name] = process
        for name, process in processes.items():
            wait_for_url(f"http://127.0.0.1:{ports[name]}/readyz", process)

    def _start_alertmanager(self) -> str:
        """Start Alertmanager, whose receivers are ours; return host:port."""
        sink = _NotificationSink(self._notifications)
        self._running.callback(sink.close)
        config = (self._files / "alertmanager.yml").read_text()
        file = self._folder / "alertmanager.yml"
        file.write_text(re.sub(r"http://localhost:\d+/", f"{sink.url}/", config))
        (port,) = free_ports(1)
        command = [
            *alertmanager_command(),
            f"--config.file={file}",
            f"--storage.path={self._folder / 'alertmanager'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--log.level=warn",
        ]
        self._start_server("Alertmanager", command, f"http://127.0.0.1:{port}/-/ready")
        return f"127.0.0.1:{port}"

    def _start_prometheus(self, targets: dict[str, list[str]], alertmanager: str) -> None:
        folder = self._folder
        rules = shutil.copytree(self._files / "rules", folder / "rules")
        alerts = rules / "alerts.yml"
        alerts.write_text(re.sub(r"( for): \w+", r"\1: 1s", alerts.read_text()))
        config = yaml.safe_load((self._files / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] = [alertmanager]
        if {job["job_name"] for job in config["scrape_configs"]} != set(targets):
            raise StackError(f"prometheus.yml has other jobs than {sorted(targets)}.")
        for job in config["scrape_configs"]:
            job["static_configs"][0]["targets"] = targets[job["job_name"]]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        command = [
            str(find_binary("prometheus")),
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
            # An alert that fires before the Alertmanager is known is sent again after this.
            "--rules.alert.resend-delay=1s",
        ]
        self._start_server("Prometheus", command, f"{self._url}/-/ready")

    def _start_server(self, name: str, command: list[str], ready: str) -> None:
        server = Server(name, command, self._folder / f"{name.lower()}.log")
        self._running.callback(server.stop)
        server.wait_until(partial(is_answered, ready), 30)


class _NotificationSink:
    """Takes what Alertmanager sends to its webhooks."""

    def __init__(self, taken: list[Notification]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                taken.append(Notification(self.path.lstrip("/"), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
