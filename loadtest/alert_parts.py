"""What the alert benchmarks start: sinks, streamer, alert service and, where asked for, the desk.

The sinks are a process of their own, a webhook and a mail server (`loadtest.alert_sinks`).
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Self

import msgspec

from deploy.local.server import free_ports
from flagger.errors import StackError
from flagger.settings import Settings
from loadtest.alert_sinks import URLS_FILE, Told, read_told
from loadtest.processes import FlaggerProcess, environment_of, variables_of, wait_for_url
from review.database import migrate, open_engine

__all__ = ["RECEIVERS", "SINKS", "AlertParts"]

SINKS = ("webhook", "mail")
RECEIVERS = """
[receiver.webhook]
url_env = "BENCH_WEBHOOK"
[receiver.mail]
url_env = "BENCH_MAIL"
"""
"""The sinks as receivers, for the file of rules."""
_START_S = 10.0


class AlertParts:
    """The parts, a process each; a context manager that ends them.

    Args:
        settings: Addresses, topics and groups.
        out: Folder for logs, rules and what the sinks were told.
        rules: Content of the file of alert rules.
        cases: Case store of a desk, a file that is made anew; None: without a desk.

    Attributes:
        streamer: The streamer.
        stream_metrics: URL of its metrics.
        desk_metrics: The same of the desk's consumer; nothing answers there without a desk.
    """

    def __init__(
        self, settings: Settings, out: Path, rules: str, *, cases: Path | None = None
    ) -> None:
        self._folder = out / "told"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        file = out / "alerts.toml"
        file.write_text(rules)
        self._processes: list[FlaggerProcess] = []
        port, alerts_port, desk_port = free_ports(3)
        self.stream_metrics = f"http://127.0.0.1:{port}/metrics"
        self.desk_metrics = f"http://127.0.0.1:{desk_port}/metrics"
        environment = environment_of(settings)
        try:
            log, module = out / "sinks.log", "loadtest.alert_sinks"
            self._start([str(self._folder)], environment, log, module=module)
            environment |= self._urls()
            command = ["stream", "--metrics-port", str(port)]
            self.streamer = self._start(command, environment, out / "stream.log")
            command = ["alerts", "run", "--file", str(file), "--metrics-port", str(alerts_port)]
            alerts = self._start(command, environment, out / "alerts.log")
            waited = [(self.stream_metrics, self.streamer)]
            waited += [(f"http://127.0.0.1:{alerts_port}/readyz", alerts)]
            if cases is not None:
                environment |= variables_of({"case_store_url": _new_case_store(cases)})
                command = ["desk", "consume", "--metrics-port", str(desk_port)]
                desk = self._start(command, environment, out / "desk.log")
                waited += [(f"http://127.0.0.1:{desk_port}/readyz", desk)]
            for url, process in waited:
                wait_for_url(url, process)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def told(self, name: str, start: int = 0) -> list[Told]:
        """Return the messages that a sink has taken, from the one with number `start` on."""
        return read_told(self._folder / f"{name}.jsonl")[start:]

    def require_running(self) -> None:
        """Raise StackError with the end of its log if a part has ended."""
        for process in self._processes:
            process.require_running()

    def stop(self) -> None:
        """Ask all to end; raises StackError if one did not end well."""
        for process in reversed(self._processes):
            process.stop()

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes:
            process.kill()

    def _start(
        self, arguments: list[str], environment: dict[str, str], log: Path, module: str = "flagger"
    ) -> FlaggerProcess:
        process = FlaggerProcess(arguments, environment, log, module=module)
        self._processes.append(process)
        return process

    def _urls(self) -> dict[str, str]:
        """Wait for the sinks' URLs; return them as variables."""
        file, deadline_s = self._folder / URLS_FILE, time.monotonic() + _START_S
        while not file.exists():
            self._processes[0].require_running()
            if time.monotonic() > deadline_s:
                raise StackError(f"The sinks did not start within {_START_S:.0f} s.")
            time.sleep(0.05)
        urls = msgspec.json.decode(file.read_bytes(), type=dict[str, str])
        return {f"BENCH_{name.upper()}": url for name, url in urls.items()}


def _new_case_store(file: Path) -> str:
    """Make an empty case store on SQLite in place of what is there; return its URL."""
    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    url = f"sqlite:///{file}"
    engine = open_engine(url)
    migrate(engine)
    engine.dispose()
    return url
