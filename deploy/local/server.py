"""One server process of the embedded stack: start, watch, stop; and the ports it may have."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path

import psutil

from flagger.errors import StackError

__all__ = ["Server", "end_process", "free_ports", "is_answered", "is_free"]

_LAUNCHER = Path(__file__).with_name("launch.py")
_LOG_TAIL_LINES = 20
_STOP_S = 15.0
"""A server that has not ended this long after SIGTERM gets SIGKILL."""
_PORTS = range(12_000, 32_000)
_PORTS_TRIED = 100
_given: set[int] = set()
_choosing = threading.Lock()
_POLL_S = 0.05
_ANSWER_S = 2.0
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past any proxy of the environment: it does not know this machine's loopback address."""


def is_free(port: int) -> bool:
    """Return True if nobody listens on this port of the loopback address."""
    with socket.socket() as probe:
        # As the servers do: connections of earlier ones that still linger are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback address that nobody listens on, each to one caller only.

    They lie below those that systems give to outgoing connections: between the choice and the
    server's own bind no client can take one, and a client that tries a port in vain cannot connect
    to itself.

    Raises:
        StackError: Too few of those that were tried are free.
    """
    found: list[int] = []
    with _choosing:
        for port in random.SystemRandom().sample(_PORTS, _PORTS_TRIED):
            if port not in _given and is_free(port):
                found.append(port)
            if len(found) == count:
                _given.update(found)
                return found
    raise StackError(
        f"Of {_PORTS_TRIED} ports between {_PORTS.start} and {_PORTS.stop} of 127.0.0.1 only "
        f"{len(found)} are free, {count} are needed. Look for programs that were left running."
    )


def is_answered(url: str) -> bool:
    """Return True if the URL, one of this machine's, answers 200 now."""
    try:
        with _direct.open(url, timeout=_ANSWER_S) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        error.close()  # it is an open answer, too
        return False
    except (OSError, HTTPException):
        return False


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
            self._log_start = out.tell()
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
            tail = self._tail()
            taken = "already in use" in tail
            hint = "Its port was taken in the meantime: start again. " if taken else ""
            raise StackError(
                f"{self.name} ended with status {status}. {hint}Its log {self._log} ends with:\n"
                f"{tail or '(nothing)'}"
            )

    def _tail(self) -> str:
        """Return the last lines that this process wrote; the file may begin with earlier ones."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

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
    for each in _left_after(family, _STOP_S):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    _left_after(family, _STOP_S)


def _left_after(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Return those that still run when all have ended or the time is over.

    One that ended counts as such at once; psutil's own wait goes on until its parent has asked.
    """
    deadline_s = time.monotonic() + timeout_s
    while left := [each for each in processes if _runs(each)]:
        if time.monotonic() > deadline_s:
            break
        time.sleep(_POLL_S)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
