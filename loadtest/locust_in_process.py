"""Locust: ready-made rows against the same model in FastAPI's own process (`rival_service`).

    locust -f loadtest/locust_in_process.py --host http://127.0.0.1:8090 --columns 54

What a payment service would write first: no features, no state, no Kafka, no keys.
"""

from __future__ import annotations

import time
from functools import cache

import msgspec
from locust import FastHttpUser, task

from loadtest.open_loop_user import OpenLoopUser, made_up_rows
from loadtest.payments import Checked

_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}


class Scored(msgspec.Struct):
    """What the service answers."""

    score: float


@cache
def _bodies(columns: int) -> list[str]:
    return [msgspec.json.encode({"row": row.tolist()}).decode() for row in made_up_rows(columns)]


class InProcess(OpenLoopUser, FastHttpUser):
    """A connection to the service."""

    network_timeout = connection_timeout = 5.0
    host = "http://127.0.0.1:8090"

    def on_start(self) -> None:
        """Get the rows."""
        self._bodies = _bodies(self.environment.parsed_options.columns)
        self._sent = 0
        super().on_start()

    @task
    def score(self) -> None:
        """Ask for the score of one row."""
        due_s = self.next_turn_s()
        self._sent += 1
        body = self._bodies[self._sent % len(self._bodies)]
        sent_s = time.perf_counter()
        with self.client.post(
            "/score-row", data=body, headers=_HEADERS, catch_response=True
        ) as response:
            done_s = time.perf_counter()
            fault = _fault(response.status_code, response.content or b"")
            response.request_meta["response_time"] = (done_s - due_s) * 1000
            if fault:
                response.failure(fault)
            else:
                response.success()
        self.record(due_s, sent_s, done_s, Checked(fault, "model"))


def _fault(status: int, answer: bytes) -> str:
    if status != 200:
        return f"status {status}" if status else "no answer"
    try:
        score = msgspec.json.decode(answer, type=Scored).score
    except msgspec.DecodeError:
        return "an answer without score"
    return "" if 0 <= score <= 1 else "no probability"
