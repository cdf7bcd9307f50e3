"""Kills a server of the embedded stack as a crash would, and starts it again where it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from deploy.local.kafka import wait_for_kafka
from deploy.local.server import Server
from deploy.local.stack import LocalStack
from deploy.local.triton import wait_for_triton
from deploy.local.valkey import wait_for_valkey

__all__ = ["Services"]

_BACKEND = "backend_stub"
"""In the name of Triton's backend processes."""
_LAUNCHER_WORDS = 3
"""A server's command comes after the launcher's: Python, the script and the parent's id."""


class Services:
    """The servers of a running stack, to be killed and restarted; a context manager.

    A restarted server has the command, the address and the data folder of the killed one. It ends
    with this context: close it before the stack.

    Args:
        stack: A stack that nobody else uses.
        logs: Folder for the logs of restarted servers.
    """

    def __init__(self, stack: LocalStack, logs: Path) -> None:
        addresses = stack.addresses
        self._logs = logs
        # A server may write its title over the command line that the system shows.
        self._servers: dict[str, Server] = dict(stack._servers)  # noqa: SLF001
        self._again: set[str] = set()
        self._killed: dict[str, tuple[dict[str, str], Path]] = {}
        self._waits: dict[str, Callable[[Server], None]] = {
            "kafka": lambda server: wait_for_kafka(server, addresses.kafka_bootstrap_servers),
            "triton": lambda server: wait_for_triton(server, addresses.triton_url),
            "valkey": lambda server: wait_for_valkey(server, addresses.valkey_url),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self._again - self._killed.keys():
            self._servers[name].stop()

    def pause(self, name: str, seconds: float) -> None:
        """Stop a server for a while: it keeps its connections and answers nothing.

        Triton's backend processes go on: it takes one that does not stir for broken, and crashes.
        """
        process = psutil.Process(self._servers[name].pid)
        family = [process, *process.children(recursive=True)]
        family = [each for each in family if _BACKEND not in each.name()]
        for each in family:
            each.suspend()
        time.sleep(seconds)
        for each in family:
            each.resume()

    def restart(self, name: str, away_s: float) -> None:
        """Kill a server with SIGKILL, and `away_s` later start it again and wait until it answers.

        Call it from a thread that lives as long as the server may.
        """
        self.kill(name)
        time.sleep(away_s)
        self.start_again(name)

    def kill(self, name: str) -> None:
        """Kill a server with SIGKILL."""
        old = self._servers[name]
        process = psutil.Process(old.pid)
        self._killed[name] = process.environ(), Path(process.cwd())
        family = [process, *process.children(recursive=True)]  # Triton's backends are processes
        for each in family:
            each.kill()
        old.stop()  # it has ended; this takes note
        psutil.wait_procs(family[1:], timeout=5)

    def start_again(self, name: str) -> None:
        """Start a killed server where it was, and wait until it answers.

        Call it from a thread that lives as long as the server may.
        """
        environment, folder = self._killed.pop(name)
        words: Any = self._servers[name]._process.args  # noqa: SLF001
        command: list[str] = words[_LAUNCHER_WORDS:]
        server = Server(
            name.capitalize(),
            command,
            self._logs / f"{name}-again.log",
            environment=environment,
            folder=folder,
        )
        self._servers[name] = server
        self._again.add(name)
        self._waits[name](server)
