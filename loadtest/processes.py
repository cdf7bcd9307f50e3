"""Runs flagger's own commands as processes, as an operator would, with their logs kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from flagger.addresses import ADDRESS_FIELDS
from flagger.errors import StackError
from flagger.settings import ENV_PREFIX, Settings
from loadtest.own_topics import TOPIC_FIELDS

__all__ = ["FlaggerProcess", "environment_of", "variables_of", "wait_for_url"]

_STOP_S = 60.0
_LOG_TAIL_LINES = 15
_SHARED = (*ADDRESS_FIELDS, *TOPIC_FIELDS, "consumer_group", "alerts_group", "partitions")


def environment_of(settings: Settings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables under which a process has these servers, topics, groups and models."""
    shared = {name: getattr(settings, name) for name in _SHARED}
    shared["model_repository"] = settings.model_repository.resolve()
    return {**os.environ, **variables_of(shared), **(extra or {})}


def variables_of(values: Mapping[str, object]) -> dict[str, str]:
    """Return settings by their names as environment variables."""
    return {f"{ENV_PREFIX}{name.upper()}": str(value) for name, value in values.items()}


class FlaggerProcess:
    """One `flagger` command in the background.

    Args:
        arguments: What follows `flagger`.
        environment: All its variables.
        log: File that its output is appended to.
        module: Python module to run instead of `flagger`.
    """

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str],
        log: Path,
        *,
        module: str = "flagger",
    ) -> None:
        self.name = arguments[0]
        self._command = f"{module} {self.name}"
        self._log = log
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=dict(environment),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._process.poll() is None

    def require_running(self) -> None:
        """Raise StackError with the end of its log if the process has ended."""
        if not self.running:
            raise StackError(
                f"`{self._command}` ended with status {self._process.returncode}:\n{self.tail()}"
            )

    def tail(self) -> str:
        """Return the last lines of its log."""
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def wait(self, timeout_s: float) -> None:
        """Wait for its end; raises StackError if it fails or takes longer."""
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise StackError(f"`{self._command}` did not end in {timeout_s:.0f} s.") from None
        if status:
            raise StackError(f"`{self._command}` ended with status {status}:\n{self.tail()}")

    def stop(self) -> None:
        """Ask it to end, wait, and raise StackError if it did not end well."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        self.wait(_STOP_S)

    def kill(self) -> None:
        """End it at once."""
        if self.running:
            self._process.kill()
            self._process.wait()


def wait_for_url(url: str, process: FlaggerProcess, timeout_s: float = 60.0) -> None:
    """Wait until the process answers 200 at the URL; raises StackError if it never does."""
    deadline_s = time.monotonic() + timeout_s
    answer = "nothing"
    while time.monotonic() < deadline_s:
        process.require_running()
        try:
            with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - ours
                if response.status == 200:
                    return
        except urllib.error.HTTPError as error:
            answer = f"{error.code} {error.read()[:300]!r}"
        except OSError as error:
            answer = str(error)
        time.sleep(0.1)
    raise StackError(f"{url} was not ready in {timeout_s:.0f} s; last answer: {answer}.")
