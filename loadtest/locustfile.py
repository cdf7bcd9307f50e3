"""Locust: payments at a constant arrival rate against the gateway's POST /v1/score.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --arrival-rate 200 -u 100 -r 100

Open loop: each request is due at a time that is fixed before the run, and its latency counts from
then, so a gateway that is slow for a moment can not slow the load down and hide it. Users take
turns; each has a connection of its own and is asked again after users / rate seconds, so that
many must be longer than an answer takes. `flagger loadtest` starts this and judges the result.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from locust import FastHttpUser, events, task
from locust.exception import StopUser

from loadtest.payments import PaymentMaker, check, stages_ms
from loadtest.recording import Recording

logger = logging.getLogger(__name__)

_HEAD_START_S = 1.0
"""From the start of the run to the first request: all users are there by then."""
_PATIENCE_S = 10.0
"""How long the last answers are waited for."""
_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
if _key := os.environ.get("GATEWAY_API_KEY"):
    _HEADERS["Authorization"] = f"Bearer {_key}"


class Run:
    """The schedule that all users share, and what they record."""

    def __init__(self, options: Any) -> None:
        self.rate_per_s: float = options.arrival_rate
        self.period_s = (options.num_users or 1) / self.rate_per_s
        self.first_s = time.perf_counter() + _HEAD_START_S
        self.recording = Recording(
            rate_per_s=self.rate_per_s,
            start_s=self.first_s + options.warm_up,
            duration_s=options.measure,
        )
        self.end_s = self.recording.start_s + options.measure
        self.payments = PaymentMaker(f"{time.time_ns():x}", busy_share=options.busy_share)
        self.users = itertools.count()

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
    group.add_argument("--arrival-rate", type=float, default=50.0, help="Requests per second")
    group.add_argument("--warm-up", type=float, default=3.0, help="Seconds that do not count")
    group.add_argument("--measure", type=float, default=float(86_400), help="Seconds that count")
    group.add_argument("--busy-share", type=float, default=0.0, help="Payments by few customers")
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


class Payer(FastHttpUser):
    """A connection of the payment service: sends what is due, then waits for its next turn."""

    network_timeout = connection_timeout = 5.0
    host = "http://127.0.0.1:8080"
    free_s = 0.0
    """When the last answer was dealt with."""

    def on_start(self) -> None:
        """Take the next free turn."""
        self.arrivals: Run = self.environment.arrivals
        self.due_s = self.arrivals.first_s + next(self.arrivals.users) / self.arrivals.rate_per_s
        while self.due_s < time.perf_counter():
            self.due_s += self.arrivals.period_s
        time.sleep(self.wait_time())

    def wait_time(self) -> float:
        """Return the seconds until the next request is due."""
        wait_s: float = max(self.due_s - time.perf_counter(), 0.0)
        return wait_s

    @task
    def pay(self) -> None:
        """Send one payment and check the answer."""
        run = self.arrivals
        due_s = self.due_s
        if due_s >= run.end_s:
            raise StopUser
        payment = run.payments.next()
        sent_s = time.perf_counter()
        with self.client.post(
            "/v1/score", data=payment.body.decode(), headers=_HEADERS, catch_response=True
        ) as response:
            done_s = time.perf_counter()
            answer = response.content or b""
            checked = check(response.status_code, answer, payment)
            fault = checked.fault
            response.request_meta["response_time"] = (done_s - due_s) * 1000
            if fault:
                response.failure(fault)
            else:
                response.success()
            timing = (response.headers or {}).get("server-timing", "")
        # A turn that begins late because the last answer came late is the gateway's doing.
        late_s = sent_s - max(due_s, self.free_s)
        self.free_s = time.perf_counter()
        self.due_s += run.period_s
        if not fault and not payment.answer:
            run.payments.answered(payment, answer)
        if fault and payment.answer:
            logger.error("%s: %s, first %s, now %s", fault, payment.body, payment.answer, answer)
        if run.recording.measures(due_s):
            run.recording.add(
                due_s=due_s,
                sent_s=sent_s,
                done_s=done_s,
                late_s=late_s,
                is_repeat=bool(payment.answer),
                checked=checked,
                stages=stages_ms(timing),
            )
