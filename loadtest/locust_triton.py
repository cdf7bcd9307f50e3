"""Locust: single rows straight to Triton over gRPC, what a model costs without anything around it.

locust -f loadtest/locust_triton.py --host 127.0.0.1:8001 --model fraud_fil:1 --columns 54
"""

from __future__ import annotations

import time

import grpc.experimental.gevent
from locust import User, task
from tritonclient.utils import InferenceServerException

from flagger.errors import ModelError
from flagger.triton import Scorer
from flagger.triton_errors import ModelName
from loadtest.open_loop_user import OpenLoopUser, made_up_rows
from loadtest.payments import Checked

grpc.experimental.gevent.init_gevent()  # or a call would stop all users

_TIMEOUT_MS = 5_000


class Caller(OpenLoopUser, User):
    """A caller of one model with rows of made-up features."""

    host = "127.0.0.1:8001"

    def on_start(self) -> None:
        """Connect; channels to one address share its connection."""
        self._scorer = Scorer(self.host, timeout_ms=_TIMEOUT_MS)
        name, _, version = self.environment.parsed_options.model.partition(":")
        self._model = ModelName(name, version)
        self._rows = made_up_rows(self.environment.parsed_options.columns)
        self._sent = 0
        super().on_start()

    def on_stop(self) -> None:
        """Close the connection."""
        self._scorer.close()

    @task
    def score(self) -> None:
        """Ask for the score of one row."""
        due_s = self.next_turn_s()
        self._sent += 1
        row = self._rows[self._sent % len(self._rows)][None, :]
        sent_s, fault = time.perf_counter(), ""
        try:
            (score,) = self._scorer.score(row, self._model)
            if not 0 <= score <= 1:
                fault = "no probability"
        except (ModelError, InferenceServerException) as error:
            fault = type(error).__name__
        done_s = time.perf_counter()
        self.record(due_s, sent_s, done_s, Checked(fault, "model"))
        self.tell_locust("gRPC", (done_s - due_s) * 1000, fault)
