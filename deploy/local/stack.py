"""The embedded stack: real Kafka, Triton and Valkey on this machine, started and stopped as one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.kafka import start_kafka, wait_for_kafka
from deploy.local.locks import FileLock
from deploy.local.record import (
    Addresses,
    is_alive,
    read_record,
    remove_record,
    stop_recorded,
    write_record,
)
from deploy.local.server import Server
from deploy.local.triton import start_triton, wait_for_triton
from deploy.local.valkey import start_valkey, wait_for_valkey
from flagger.addresses import STACK_FILE
from flagger.errors import StackError
from flagger.settings import Settings

__all__ = ["ALL_SERVICES", "Addresses", "LocalStack"]

ALL_SERVICES = frozenset({"kafka", "triton", "valkey"})
LEAST_FREE_BYTES = 1 << 30
"""Below this much free disk nothing is started: a broker that fills the disk loses the rest too."""

_Started = tuple[dict[str, str], Callable[[], None]]
"""The addresses of a service that was started, and what waits until it answers."""


class LocalStack:
    """Starts, waits for and stops the services; a context manager.

    Kafka's data outlives the stack (unless `fresh`); Valkey's does not, it is rebuilt from Kafka's.

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
        self._lock = FileLock(self._home / "lock")
        self._services = services
        self._fresh = fresh
        self._on_step = on_step
        self._servers: dict[str, Server] = {}
        # Servers die with the thread that started them: these live until `stop`.
        self._starters: ThreadPoolExecutor | None = None
        self._starting: list[Future[_Started]] = []
        self.model_repository = model_repository
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
        return {name: server.pid for name, server in sorted(self._servers.items())}

    def start(self) -> None:
        """Start what is wanted, side by side, and wait until all of it answers.

        Raises:
            StackError: Something did not start; what had started is stopped again.
        """
        self._take_home()
        try:
            self._prepare_home()
            self._starters = ThreadPoolExecutor(len(ALL_SERVICES), thread_name_prefix="stack")
            self._starting = [
                self._starters.submit(self._start_one, name) for name in sorted(self._services)
            ]
            started = [future.result() for future in self._starting]
            for addresses, wait_for_answer in started:
                wait_for_answer()
                self.addresses = replace(self.addresses, **addresses)
            write_record(self._home, self.addresses, self.pids)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop everything that was started here; stopping twice does no harm."""
        wait(self._starting)  # what is about to start must be known before it can be stopped
        servers, self._servers, self._starting = list(self._servers.values()), {}, []
        with ThreadPoolExecutor(len(ALL_SERVICES)) as pool:
            list(pool.map(Server.stop, servers))
        if self._starters is not None:
            self._starters.shutdown(wait=True)
            self._starters = None
        if self._lock.held:
            remove_record(self._home)
            self._lock.release()

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
                "model_repository": self.model_repository,
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

    def _take_home(self) -> None:
        """Hold the folder until `stop`; a record that is left in it is stale then."""
        taken = self._lock.acquire(wait=False)
        try:
            record = read_record(self._home)
            if taken and not (record and is_alive(record["owner"])):
                return
            whose = f" under process {record['owner']['pid']}" if record else ", or is starting"
            raise StackError(
                f"A stack runs in {self._home} already{whose}. Use it as it is, or stop it with "
                f"`flagger down`."
            )
        except StackError:
            if taken:
                self._lock.release()
            raise

    def _prepare_home(self) -> None:
        stop_recorded(self._home)
        if self._fresh:
            for name in ALL_SERVICES:
                shutil.rmtree(self._home / name, ignore_errors=True)
        free = shutil.disk_usage(self._home).free
        if free < LEAST_FREE_BYTES:
            raise StackError(
                f"{self._home} has {free >> 20:,} MiB of free disk; at least "
                f"{LEAST_FREE_BYTES >> 20:,} are needed. Make room, or give another folder."
            )

    def _start_one(self, name: str) -> _Started:
        self._on_step(f"starting {name}")
        home, logs = self._home / name, self._home / "logs"
        if name == "kafka":
            server, address = start_kafka(home, logs)
            self._servers[name] = server
            return {"kafka_bootstrap_servers": address}, lambda: wait_for_kafka(server, address)
        if name == "valkey":
            server, address = start_valkey(home, logs)
            self._servers[name] = server
            return {"valkey_url": address}, lambda: wait_for_valkey(server, address)
        server, doors = start_triton(home, logs, self.model_repository)
        self._servers[name] = server
        addresses = {
            "triton_url": doors.grpc,
            "triton_http_url": doors.http,
            "triton_metrics_url": f"http://{doors.metrics}/metrics",
        }
        return addresses, lambda: wait_for_triton(server, doors.grpc)
