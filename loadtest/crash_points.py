"""A streamer in a process of its own that is killed at an exact point, for the crash tests.

Production code has no hooks for this: the process puts its own producer class and its own store
methods in place before it builds the real pipeline. Processes come out of a fork server that has
loaded everything, so a start takes a fraction of a second. It ends with the process that uses it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType
from typing import Any

import numpy.typing as npt
import psutil
from confluent_kafka import Producer

import streamer.sink
import streamer.source
from flagger.errors import StackError
from flagger.models import live_version, load_version
from flagger.settings import Settings
from flagger.state.store import StateStore
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline

__all__ = ["POINTS", "CrashingStreamer"]

POINTS = (
    "produced",  # outputs are in the broker, neither offsets nor commit
    "offsets-sent",  # inside the commit: offsets are in the transaction
    "committed",  # the commit is through, its state is not written
    "state-write-begins",
    "half-of-the-customers-written",
    "customers-written",  # but no terminals
    "terminals-written",  # but no marks
    "side-marks-written",  # but not the transactions' marks
    "state-written",
)
_END_S = 60.0
_SESSION_TIMEOUT_MS = 6_000
"""The least that Kafka accepts: whoever takes over from one that was killed waits for so long."""
_CONTEXT = multiprocessing.get_context("forkserver")


class CrashingStreamer:
    """A real streamer as a process; with a point, it kills or stops itself there.

    `flagger stream` without its command line: the same pipeline on the live model.

    Args:
        settings: With all addresses and the instance.
        log: File that its output is appended to.
        point: One of `POINTS`; None: nothing happens to it.
        nth: At which of its passes through the point it happens, from 1.
        how: SIGKILL, or SIGSTOP for a pause.
    """

    def __init__(
        self,
        settings: Settings,
        log: Path,
        *,
        point: str | None = None,
        nth: int = 1,
        how: signal.Signals = signal.SIGKILL,
    ) -> None:
        if point is not None and point not in POINTS:
            raise ValueError(f"no such point: {point}; there are {', '.join(POINTS)}")
        _CONTEXT.set_forkserver_preload([__name__, "loadtest.crash_warm"])
        self._log = log
        self._process: ForkServerProcess = _CONTEXT.Process(
            target=_run, args=(settings, str(log), point, nth, how), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process id."""
        pid = self._process.pid
        assert pid is not None  # noqa: S101 - it was started
        return pid

    @property
    def running(self) -> bool:
        """True until the process has ended."""
        return self._process.is_alive()

    @property
    def status(self) -> int | None:
        """Exit status; negative: the signal that killed it; None: it runs."""
        return self._process.exitcode

    def tail(self) -> str:
        """Return the end of its log."""
        return self._log.read_text(errors="replace")[-3_000:] if self._log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self.running:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def wait(self, timeout_s: float = _END_S) -> int | None:
        """Wait for its end; return its exit status, None if it still runs."""
        self._process.join(timeout_s)
        return self._process.exitcode

    @property
    def paused(self) -> bool:
        """True while SIGSTOP holds it."""
        return self.running and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED

    def kill(self) -> None:
        """End it at once, also while it is stopped."""
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """Ask it to end, wait, and raise StackError if it did not end well."""
        self.send(signal.SIGTERM)
        if self.wait() != 0:
            self.kill()
            raise StackError(f"A streamer ended with status {self.status}:\n{self.tail()}")


def _run(settings: Settings, log: str, point: str | None, nth: int, how: signal.Signals) -> None:
    """Run in the new process."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s", force=True
    )
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    streamer.source._SESSION_TIMEOUT_MS = _SESSION_TIMEOUT_MS  # noqa: SLF001
    if point is not None:
        _arm(point, nth, how)
    repository = settings.model_repository
    model = load_version(repository, live_version(repository))
    Pipeline(settings, model, StreamerMetrics(), keep_going=lambda: not stopping).run()


def _arm(point: str, nth: int, how: signal.Signals) -> None:
    """Put in place what signals this process when it passes the point for the nth time."""
    left = nth

    def passes(name: str) -> None:
        nonlocal left
        if name == point:
            left -= 1
            if left == 0:
                logging.getLogger(__name__).info("%s at %s", how.name, point)
                os.kill(os.getpid(), how)

    class KilledProducer(Producer):  # type: ignore[misc]
        """Passes the points around the commit."""

        def send_offsets_to_transaction(self, *arguments: Any) -> None:
            if point == "produced":
                self.flush()
            passes("produced")
            super().send_offsets_to_transaction(*arguments)
            passes("offsets-sent")

        def commit_transaction(self, *arguments: Any) -> None:
            super().commit_transaction(*arguments)
            passes("committed")

    streamer.sink.Producer = KilledProducer  # type: ignore[attr-defined]
    _arm_store(point, passes)


def _arm_store(point: str, passes: Callable[[str], None]) -> None:
    write, write_marks = StateStore.write, StateStore.write_marks

    def killed_write(self: StateStore, kind: Any, records: npt.NDArray[Any], *claim: Any) -> None:
        if len(records) and kind == "customer":
            passes("state-write-begins")
            if point == "half-of-the-customers-written":
                write(self, kind, records[: len(records) // 2], *claim)
                passes(point)
        write(self, kind, records, *claim)
        if len(records):
            passes(f"{kind}s-written")

    def killed_write_marks(self: StateStore, name: str, marks: dict[str, int], *claim: Any) -> None:
        write_marks(self, name, marks, *claim)
        passes("side-marks-written" if name.endswith(":side-logs") else "state-written")

    StateStore.write = killed_write  # type: ignore[method-assign, assignment]
    StateStore.write_marks = killed_write_marks  # type: ignore[method-assign, assignment]
