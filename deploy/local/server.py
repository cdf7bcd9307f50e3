"""One server process of the embedded stack: start, watch, stop; and the ports it may have."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from flagger.errors import StackError

__all__ = ["Server", "end_process", "free_ports", "require_free_port"]

_LAUNCHER = Path(__file__).with_name("launch.py")
_LOG_TAIL_LINES = 20
_STOP_S = 15.0
_POLL_S = 0.05


def free_ports(count: int) -> list[int]:
    """Return distinct ports of the loopback address that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def require_free_port(port: int, name: str) -> None:
    """Raise StackError if somebody listens on the port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StackError(
                f"{name} cannot have port {port} of 127.0.0.1: {error.strerror}. Start again, a "
                f"free one is chosen each time."
            ) from error


class Server:
    """A server process with a log file.

    It must be started from a thread that lives as long as the server may: the kernel ends it with
    that thread.

    Args:
        name: What messages call it.
        command: The program and its arguments.
        log: File that its output is appended to.
        environment: All its variables.
        folder: Its working directory.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, str(_LAUNCHER), str(os.getpid()), *command],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=None if environment is None else dict(environment),
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for us to handle, not for it
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def require_running(self) -> None:
        """Raise StackError with the end of its log if it has ended."""
        status = self._process.poll()
        if status is not None:
            lines = self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            raise StackError(
                f"{self.name} ended with status {status}. Its log {self._log} ends with:\n"
                + "\n".join(lines)
            )

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Wait until `ready` says so; raises StackError if it ends or takes longer."""
        deadline_s = time.monotonic() + timeout_s
        while not ready():
            self.require_running()
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"{self.name} did not answer within {timeout_s:.0f} s; see its log {self._log}."
                )
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Ask it to end, and make it after a while."""
        end_process(self._process.pid)
        self._process.wait()


def end_process(pid: int) -> None:
    """End a process and its children: SIGTERM, then SIGKILL for those that are left."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
        process.send_signal(signal.SIGTERM)
    except psutil.NoSuchProcess:
        return
    _, alive = psutil.wait_procs(family, timeout=_STOP_S)
    for each in alive:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(alive, timeout=_STOP_S)
