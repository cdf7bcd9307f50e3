"""What all Locust users share: a schedule of arrivals, turns, and the recording of every request.

Open loop: each request is due at a time that is fixed before the run, and its latency counts from
then, so a server that is slow for a moment can not slow the load down and hide it. Users take
turns: with n of them each gets every n-th request, so that n turns must take longer than an answer.
Importing this adds our options to Locust's.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from locust import FastHttpUser, events
from locust.exception import StopUser
from numpy.typing import NDArray

from loadtest.arrivals import CONSTANT, SHAPES, due_times_s
from loadtest.payments import Checked, PaymentMaker
from loadtest.recording import Recording

__all__ = ["OpenLoopHttpUser", "OpenLoopUser", "Posted", "Run", "made_up_rows"]

_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
_HEAD_START_S = 1.0
"""From the start of the run to the first request: all users are there by then."""
_ROWS = 100
_PATIENCE_S = 10.0
"""How long the last answers are waited for."""


class Run:
    """The schedule that all users share, and what they record."""

    def __init__(self, options: Any) -> None:
        self._step = options.num_users or 1
        first_s = time.perf_counter() + _HEAD_START_S
        # The rate is warmed up at the shape's own beginning.
        shape, rate_per_s = options.shape, options.arrival_rate
        calm = due_times_s(CONSTANT, rate_per_s * SHAPES[shape][0][1], options.warm_up)
        measured = due_times_s(shape, rate_per_s, options.measure)
        self._due_s = first_s + np.concatenate([calm, options.warm_up + measured])
        self.recording = Recording(
            rate_per_s=len(measured) / options.measure,
            start_s=first_s + options.warm_up,
            duration_s=options.measure,
        )
        self.end_s = self.recording.start_s + options.measure
        self.payments = PaymentMaker(f"{time.time_ns():x}", busy_share=options.busy_share)
        self._users = itertools.count()

    def turns(self) -> Iterator[float]:
        """Return the times at which the next user's requests are due."""
        return iter(self._due_s[next(self._users) :: self._step].tolist())

    def watch_cpu(self) -> None:
        """Note this process's CPU time, second by second, in the measured part."""
        recording = self.recording
        time.sleep(max(recording.start_s - time.perf_counter(), 0.0))
        while (begin_s := time.perf_counter()) < self.end_s:
            used_s = time.process_time()
            time.sleep(1.0)
            elapsed_s = time.perf_counter() - begin_s
            recording.cpu_shares.append((time.process_time() - used_s) / elapsed_s)

    def end(self, environment: Any) -> None:
        """End Locust once all users have ended, which they do after the measured part."""
        time.sleep(max(self.end_s - time.perf_counter(), 0.0))
        while environment.runner.user_count and time.perf_counter() < self.end_s + _PATIENCE_S:
            time.sleep(0.05)
        environment.runner.quit()


def _options(parser: Any) -> None:
    group = parser.add_argument_group("arrivals")
    group.add_argument("--arrival-rate", type=float, default=50.0, help="Highest requests/s")
    group.add_argument("--shape", choices=sorted(SHAPES), default=CONSTANT, help="Of the rate")
    group.add_argument("--warm-up", type=float, default=3.0, help="Seconds that do not count")
    group.add_argument("--measure", type=float, default=3_600.0, help="Seconds that count")
    group.add_argument("--busy-share", type=float, default=0.0, help="Payments by few customers")
    group.add_argument("--model", default="", help="Of Triton, name:version")
    group.add_argument("--columns", type=int, default=1, help="Of the model's rows")
    group.add_argument("--recording", default="", help="File for every request's times")


def _start(environment: Any, **_: Any) -> None:
    environment.arrivals = run = Run(environment.parsed_options)
    # Locust makes greenlets of threads.
    threading.Thread(target=run.watch_cpu, daemon=True).start()
    threading.Thread(target=run.end, args=(environment,), daemon=True).start()
    gc.collect()
    gc.freeze()  # a collection through all that Locust has loaded would stop the schedule


def _write(environment: Any, **_: Any) -> None:
    if environment.parsed_options.recording:
        content = msgspec.json.encode(environment.arrivals.recording)
        Path(environment.parsed_options.recording).write_bytes(content)


for _event, _listener in (
    (events.init_command_line_parser, _options),
    (events.test_start, _start),
    (events.quitting, _write),
):
    _event.add_listener(_listener)  # type: ignore[no-untyped-call]


@cache
def made_up_rows(columns: int) -> NDArray[np.float32]:
    """Return some rows for a model, float32 (rows, columns); the same in each run."""
    return np.random.default_rng(0).random((_ROWS, columns), dtype=np.float32)


class OpenLoopUser:
    """Asks when its turn is due; a part of a Locust user, before Locust's own class."""

    environment: Any
    free_s = 0.0
    """When the last answer was dealt with."""

    def on_start(self) -> None:
        """Take the next free turns; those that are past belong to nobody."""
        self.arrivals: Run = self.environment.arrivals
        self._turns = self.arrivals.turns()
        self._due_s: float | None = next(self._turns, None)
        while self._due_s is not None and self._due_s < time.perf_counter():
            self._due_s = next(self._turns, None)
        time.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Return the seconds until the next request is due."""
        due_s = self._due_s or 0.0
        return max(due_s - time.perf_counter(), 0.0)

    def next_turn_s(self) -> float:
        """Return when the request that is sent now was due; StopUser after the last one."""
        due_s = self._due_s
        if due_s is None:
            raise StopUser
        self._due_s = next(self._turns, None)
        return due_s

    def record(
        self, due_s: float, sent_s: float, done_s: float, checked: Checked, *,
        is_repeat: bool = False, stages: dict[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Note an answered request, if it belongs to the measured part."""
        # A turn that begins late because the last answer came late is the server's doing.
        late_s = sent_s - max(due_s, self.free_s)
        self.free_s = time.perf_counter()
        recording = self.arrivals.recording
        if recording.measures(due_s):
            recording.add(
                due_s=due_s,
                sent_s=sent_s,
                done_s=done_s,
                late_s=late_s,
                is_repeat=is_repeat,
                checked=checked,
                stages=stages or {},
            )

    def tell_locust(self, kind: str, latency_ms: float, fault: str) -> None:
        """Count a request in Locust's own table, where its client does not do it."""
        self.environment.events.request.fire(
            request_type=kind,
            name=type(self).__name__,
            response_time=latency_ms,
            response_length=0,
            exception=RuntimeError(fault) if fault else None,
            context={},
        )


@dataclass(frozen=True, slots=True)
class Posted:
    """A request that was answered, or not.

    Attributes:
        sent_s: When it was sent.
        done_s: When its answer was there.
        answer: The answer's body; empty if none came.
        headers: The answer's.
        checked: What it is worth.
    """

    sent_s: float
    done_s: float
    answer: bytes
    headers: Mapping[str, str]
    checked: Checked


class OpenLoopHttpUser(OpenLoopUser, FastHttpUser):
    """One connection to an HTTP server."""

    abstract = True
    network_timeout = connection_timeout = 5.0

    def post(
        self, due_s: float, path: str, body: str, check: Callable[[int, bytes], Checked],
        headers: Mapping[str, str] | None = None,
    ) -> Posted:  # fmt: skip
        """Send JSON; `check` gets the status (0: no answer) and the body."""
        sent_s = time.perf_counter()
        with self.client.post(
            path, data=body, headers=_HEADERS | dict(headers or {}), catch_response=True
        ) as response:
            done_s = time.perf_counter()
            answer = response.content or b""
            checked = check(response.status_code, answer)
            response.request_meta["response_time"] = (done_s - due_s) * 1000
            if checked.fault:
                response.failure(checked.fault)
            else:
                response.success()
            return Posted(sent_s, done_s, answer, response.headers or {}, checked)
