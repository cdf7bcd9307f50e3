"""The embedded stack: real Kafka, Triton and Valkey on this machine, started and stopped as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from deploy.local.kafka import start_kafka, wait_for_kafka
from deploy.local.server import Server, end_process
from deploy.local.triton import start_triton, wait_for_triton
from deploy.local.valkey import start_valkey, wait_for_valkey
from flagger.addresses import STACK_FILE
from flagger.errors import StackError
from flagger.settings import Settings

__all__ = ["ALL_SERVICES", "Addresses", "LocalStack", "read_record", "stop_recorded"]

ALL_SERVICES = frozenset({"kafka", "triton", "valkey"})
LEAST_FREE_BYTES = 1 << 30
"""Below this much free disk nothing is started: a broker that fills the disk loses the rest too."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the services listen; "" for those that this stack does not know.

    Attributes:
        kafka_bootstrap_servers: host:port.
        triton_url: host:port of gRPC.
        triton_http_url: host:port of HTTP.
        triton_metrics_url: http://host:port/metrics
        valkey_url: valkey://host:port/0
    """

    kafka_bootstrap_servers: str = ""
    triton_url: str = ""
    triton_http_url: str = ""
    triton_metrics_url: str = ""
    valkey_url: str = ""


class LocalStack:
    """Starts, waits for and stops the services; a context manager.

    Args:
        home: Folder for data, logs and the record of what runs.
        model_repository: Triton's model repository.
        services: Which to start.
        settings: Addresses set here are used instead of starting that service.
        fresh: Begin without the data of earlier runs.
        on_step: Told what happens, for a person who waits.
    """

    def __init__(
        self,
        home: Path = STACK_FILE.parent,
        *,
        model_repository: Path = Path("model_repository"),
        services: frozenset[str] = ALL_SERVICES,
        settings: Settings | None = None,
        fresh: bool = False,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._home = home.resolve()
        self._repository = model_repository
        self._services = services
        self._fresh = fresh
        self._on_step = on_step
        self._servers: dict[str, Server] = {}
        # Servers die with the thread that started them: this one lives until `stop`.
        self._starter: ThreadPoolExecutor | None = None
        self.addresses = Addresses()
        if settings is not None:
            self._use_running(settings)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by service."""
        return {name: server.pid for name, server in self._servers.items()}

    def start(self) -> None:
        """Start what is wanted and wait until all of it answers.

        Raises:
            StackError: Something did not start; what had started is stopped again.
        """
        self._prepare_home()
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="stack")
        try:
            waits = [self._starter.submit(self._start_one, name) for name in sorted(self._services)]
            for wait in [future.result() for future in waits]:
                wait()
            self._write_record()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything that was started here; stopping twice does no harm."""
        servers, self._servers = list(self._servers.values()), {}
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(Server.stop, servers))
        if self._starter is not None:
            self._starter.shutdown(wait=True)
            self._starter = None
        record = read_record(self._home)
        if record and record["owner"]["pid"] == os.getpid():
            (self._home / STACK_FILE.name).unlink(missing_ok=True)

    def require_running(self) -> None:
        """Raise StackError if a service has ended."""
        for server in self._servers.values():
            server.require_running()

    def settings(self, base: Settings | None = None) -> Settings:
        """Return settings that point at this stack and its model repository."""
        addresses = self.addresses
        return (base or Settings()).model_copy(
            update={
                "kafka_bootstrap_servers": addresses.kafka_bootstrap_servers or None,
                "triton_url": addresses.triton_url or None,
                "valkey_url": addresses.valkey_url or None,
                "model_repository": self._repository,
            }
        )

    def _use_running(self, settings: Settings) -> None:
        given = {
            "kafka": ("kafka_bootstrap_servers", settings.kafka_bootstrap_servers),
            "triton": ("triton_url", settings.triton_url),
            "valkey": ("valkey_url", settings.valkey_url),
        }
        for service, (name, address) in given.items():
            if address is not None:
                self._services -= {service}
                self.addresses = replace(self.addresses, **{name: address})

    def _prepare_home(self) -> None:
        record = read_record(self._home)
        if record and _is_alive(record["owner"]):
            raise StackError(
                f"A stack runs in {self._home} already, under process {record['owner']['pid']}. "
                f"Use it as it is, or stop it with `flagger down`."
            )
        stop_recorded(self._home)
        if self._fresh:
            for name in ALL_SERVICES:
                shutil.rmtree(self._home / name, ignore_errors=True)
        self._home.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._home).free
        if free < LEAST_FREE_BYTES:
            raise StackError(
                f"{self._home} has {free >> 20:,} MiB of free disk; at least "
                f"{LEAST_FREE_BYTES >> 20:,} are needed. Make room, or give another folder."
            )

    def _start_one(self, name: str) -> Callable[[], None]:
        """Start a service; return what waits until it answers."""
        self._on_step(f"starting {name}")
        home, logs = self._home / name, self._home / "logs"
        if name == "kafka":
            server, address = start_kafka(home, logs)
            self.addresses = replace(self.addresses, kafka_bootstrap_servers=address)
            self._servers[name] = server
            return lambda: wait_for_kafka(server, address)
        if name == "valkey":
            server, address = start_valkey(home, logs)
            self.addresses = replace(self.addresses, valkey_url=address)
            self._servers[name] = server
            return lambda: wait_for_valkey(server, address)
        server, doors = start_triton(home, logs, self._repository)
        self.addresses = replace(
            self.addresses,
            triton_url=doors.grpc,
            triton_http_url=doors.http,
            triton_metrics_url=f"http://{doors.metrics}/metrics",
        )
        self._servers[name] = server
        return lambda: wait_for_triton(server, doors.grpc)

    def _write_record(self) -> None:
        content = {
            "owner": _identity(os.getpid()),
            "processes": {name: _identity(pid) for name, pid in self.pids.items()},
            "addresses": asdict(self.addresses),
        }
        path = self._home / STACK_FILE.name
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.replace(path)


def _identity(pid: int) -> dict[str, float]:
    """Return what tells a process from a later one with the same id."""
    return {"pid": pid, "create_time": psutil.Process(pid).create_time()}


def _is_alive(identity: dict[str, float]) -> bool:
    try:
        process = psutil.Process(int(identity["pid"]))
        return abs(process.create_time() - identity["create_time"]) < 1.0 and (
            process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False


def read_record(home: Path) -> dict[str, Any] | None:
    """Return what a stack in this folder wrote about itself, or None."""
    try:
        record: dict[str, Any] = json.loads((home / STACK_FILE.name).read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StackError(
            f"{home / STACK_FILE.name} is damaged ({error}). Delete it once none of the stack's "
            f"processes runs any more."
        ) from error
    return record


def stop_recorded(home: Path) -> list[str]:
    """Stop the stack that is recorded in this folder, if any; return what was stopped.

    A living owner is asked to end, so that it stops its own servers; what is left is ended here.
    """
    record = read_record(home)
    if record is None:
        return []
    stopped = []
    if _is_alive(record["owner"]) and record["owner"]["pid"] != os.getpid():
        owner = psutil.Process(int(record["owner"]["pid"]))
        owner.send_signal(signal.SIGTERM)
        psutil.wait_procs([owner], timeout=30)
        stopped.append("flagger up")
    for name, identity in record["processes"].items():
        if _is_alive(identity):
            end_process(int(identity["pid"]))
            stopped.append(name)
    (home / STACK_FILE.name).unlink(missing_ok=True)
    return stopped
