"""Locust: ready-made rows against the same model in FastAPI's own process (`rival_service`).

    locust -f loadtest/locust_in_process.py --host http://127.0.0.1:8090 --columns 54

What a payment service would write first: no features, no state, no Kafka, no keys.
"""

from __future__ import annotations

from functools import cache

import msgspec
from locust import task

from loadtest.open_loop_user import OpenLoopHttpUser, made_up_rows
from loadtest.payments import Checked


class Scored(msgspec.Struct):
    """What the service answers."""

    score: float


@cache
def _bodies(columns: int) -> list[str]:
    return [msgspec.json.encode({"row": row.tolist()}).decode() for row in made_up_rows(columns)]


class InProcess(OpenLoopHttpUser):
    """A connection to the service."""

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
        posted = self.post(due_s, "/score-row", body, _check)
        self.record(due_s, posted.sent_s, posted.done_s, posted.checked)


def _check(status: int, answer: bytes) -> Checked:
    return Checked(_fault(status, answer), "model")


def _fault(status: int, answer: bytes) -> str:
    if status != 200:
        return f"status {status}" if status else "no answer"
    try:
        score = msgspec.json.decode(answer, type=Scored).score
    except msgspec.DecodeError:
        return "an answer without score"
    return "" if 0 <= score <= 1 else "no probability"
