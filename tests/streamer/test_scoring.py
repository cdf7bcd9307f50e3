"""Waiting for the model server, and finding the row that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flagger.errors import ModelRefusedError, ModelUnavailableError
from flagger.triton import ModelName
from streamer.health import Health
from streamer.scoring import PatientScorer

ROWS = np.arange(40, dtype=np.float32).reshape(20, 2)


class Answer:
    def __init__(self, outcome: npt.NDArray[np.float32] | Exception) -> None:
        self._outcome = outcome

    def result(self, _timeout_s: float) -> npt.NDArray[np.float32]:
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Server:
    """Scores a row by its first value; refuses poison, or is away for the first requests."""

    def __init__(self, poison: set[float], away: int = 0, refuses_all: bool = False) -> None:
        self.poison, self.away, self.refuses_all = poison, away, refuses_all
        self.requests = 0

    def submit(self, rows: npt.NDArray[np.float32], _model: ModelName) -> Answer:
        self.requests += 1
        if self.requests <= self.away:
            return Answer(ModelUnavailableError("away"))
        if self.refuses_all or self.poison & set(rows[:, 0].tolist()):
            return Answer(ModelRefusedError("poison"))
        return Answer(rows[:, 0] / np.float32(100))


def scorer(
    server: Server,
    errors: list[str],
    keep_going: Any = lambda: True,
    *,
    health: Health | None = None,
    patience_ms: int | None = None,
    before_waiting: Any = lambda: None,
) -> PatientScorer:
    return PatientScorer(
        server,  # type: ignore[arg-type]
        ModelName("m", "1"),
        timeout_ms=100,
        keep_going=keep_going,
        on_error=errors.append,
        before_waiting=before_waiting,
        health=health or Health(),
        patience_ms=patience_ms,
    )


@pytest.mark.parametrize("poison", [{6.0}, {2.0, 38.0}, set(ROWS[:, 0].tolist()) - {0.0}])
def test_refused_rows_are_found_and_the_others_scored(poison: set[float]) -> None:
    errors: list[str] = []
    patient = scorer(Server(poison), errors)
    scores, refused = patient.result(patient.submit(ROWS), ROWS)
    assert {ROWS[i, 0] for i in refused} == poison
    for i, value in enumerate(ROWS[:, 0]):
        assert np.isnan(scores[i]) if value in poison else scores[i] == value / np.float32(100)
    assert set(errors) == {"refused"}


def test_a_server_that_refuses_everything_is_not_the_rows_fault() -> None:
    patient = scorer(Server(set(), refuses_all=True), [])
    with pytest.raises(ModelRefusedError):
        patient.result(patient.submit(ROWS), ROWS)


def test_it_asks_again_until_the_server_is_back() -> None:
    errors: list[str] = []
    server = Server(set(), away=3)
    patient = scorer(server, errors)
    scores, refused = patient.result(patient.submit(ROWS), ROWS)
    assert not refused
    assert scores.tolist() == (ROWS[:, 0] / 100).tolist()
    assert errors == ["unavailable"] * 3


def test_a_stop_ends_the_waiting() -> None:
    patient = scorer(Server(set(), away=1_000), [], keep_going=lambda: False)
    with pytest.raises(ModelUnavailableError):
        patient.result(patient.submit(ROWS), ROWS)


def test_the_health_says_why_it_waits_and_what_was_decided_goes_out() -> None:
    health = Health()
    seen: list[object] = []
    health.goes_on("partitions")

    def keep_going() -> bool:
        seen.append(health.reasons)
        return True

    patient = scorer(
        Server(set(), away=2),
        [],
        keep_going=keep_going,
        health=health,
        before_waiting=lambda: seen.append("committed"),
    )
    patient.result(patient.submit(ROWS), ROWS)
    assert seen == ["committed", {"triton": "away"}, {"triton": "away"}]
    assert health.reasons == {}


def test_patience_ends_once_and_comes_back_with_the_server() -> None:
    server = Server(set(), away=1_000)
    patient = scorer(server, [], patience_ms=120)
    with pytest.raises(ModelUnavailableError):
        patient.result(patient.submit(ROWS), ROWS)
    asked = server.requests
    assert asked > 1  # it asked again while it had patience
    with pytest.raises(ModelUnavailableError):
        patient.result(patient.submit(ROWS), ROWS)
    assert server.requests == asked + 1  # and only once after that
    server.away = 0
    assert len(patient.result(patient.submit(ROWS), ROWS)[0]) == len(ROWS)
    server.away = server.requests + 1
    patient.result(patient.submit(ROWS), ROWS)  # patient again
