"""The shadow and the canary's lane without servers: how much is asked, what is compared."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flagger.errors import ModelUnavailableError
from flagger.features import FEATURE_NAMES
from flagger.models import ModelVersion, live_version, load_version
from flagger.policy import APPROVE, DECLINE, REVIEW, Policy
from flagger.reasons import Reason
from flagger.settings import Settings
from streamer.canary import CanaryPart, merged
from streamer.metrics import StreamerMetrics
from streamer.shadow import Shadow
from streamer.verdicts import Tried, Verdicts

REPOSITORY = Path(__file__).parents[2] / "model_repository"
LIVE = Policy("live", 0.5, 0.9)


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Answer:
    """An answer that the test completes."""

    def __init__(self, rows: npt.NDArray[np.float32]) -> None:
        self.rows = rows
        self.done = False
        self.error: Exception | None = None

    def result(self, _timeout_s: float) -> npt.NDArray[np.float32]:
        assert self.done
        if self.error is not None:
            raise self.error
        return np.full(len(self.rows), 0.7, dtype=np.float32)


class Server:
    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def submit(self, rows: npt.NDArray[np.float32], _model: Any) -> Any:
        self.answers.append(Answer(rows))
        return self.answers[-1]


class World:
    def __init__(self, **settings: Any) -> None:
        found = load_version(REPOSITORY, live_version(REPOSITORY))
        candidate: ModelVersion = replace(found, version="2", policy=Policy("new", 0.6, 0.95))
        self.server, self.clock, self.metrics = Server(), Clock(), StreamerMetrics()
        server: Any = self.server
        chosen = Settings(**settings)
        self.shadow = Shadow(candidate, LIVE, server, chosen, self.metrics, self.clock)

    def observe(self, scores: list[float]) -> None:
        n = len(scores)
        rows = np.zeros((n, len(FEATURE_NAMES)), dtype=np.float32)
        keys = np.zeros((n, 4), dtype=np.uint64)
        self.shadow.observe(rows, np.array(scores, dtype=np.float32), keys)

    def count(self, live: str, shadow: str) -> float:
        labels = {"live": live, "shadow": shadow}
        name = "flagger_streamer_shadow_decisions_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def test_it_compares_decisions_by_each_ones_own_thresholds() -> None:
    world = World()
    world.clock.s = 1.0
    world.observe([0.1, 0.55, 0.95, 0.2])
    world.server.answers[0].done = True
    world.shadow.take_answer()
    assert world.count("approve", "review") == 2
    assert world.count("review", "review") == 1
    assert world.count("decline", "review") == 1
    found = world.metrics.registry.get_sample_value("flagger_streamer_shadow_score_difference_sum")
    assert found == pytest.approx(0.6 + 0.15 + 0.25 + 0.5, abs=1e-6)


def test_it_takes_a_bounded_share_of_rows_and_of_triton() -> None:
    world = World(shadow_rows_per_s=100)
    world.clock.s = 10.0
    world.observe([0.1] * 1_000)
    assert [len(a.rows) for a in world.server.answers] == [100]
    world.clock.s = 12.0
    world.observe([0.1] * 1_000)  # one request at a time
    assert len(world.server.answers) == 1
    world.server.answers[0].done = True
    world.observe([0.1] * 1_000)  # it took 2 s: nothing for 18 s
    world.clock.s = 29.9
    world.observe([0.1] * 1_000)
    assert len(world.server.answers) == 1
    world.clock.s = 30.0
    world.observe([0.1] * 1_000)
    assert len(world.server.answers) == 2
    assert world.count("approve", "review") == 100


def test_what_it_does_not_answer_is_counted_and_it_is_left_alone_a_while() -> None:
    world = World()
    world.clock.s = 1.0
    world.observe([0.1])
    world.server.answers[0].done = True
    world.server.answers[0].error = ModelUnavailableError("away")
    world.shadow.take_answer()
    name = "flagger_streamer_shadow_errors_total"
    assert world.metrics.registry.get_sample_value(name) == 1
    world.clock.s = 5.0
    world.observe([0.1])
    assert len(world.server.answers) == 1
    world.clock.s = 6.1
    world.observe([0.1])
    assert len(world.server.answers) == 2


def verdicts(codes: list[int], scores: list[float], name: str) -> Verdicts:
    array = np.array(codes, dtype=np.uint8)
    flagged = np.flatnonzero(array != APPROVE)
    reasons = [[Reason("score", f"{name} {i}")] for i in flagged.tolist()]
    return Verdicts(
        array, "model", np.array(scores, dtype=np.float32), flagged, _write=lambda: reasons
    )


def test_decisions_of_two_models_become_those_of_one_batch() -> None:
    live = verdicts([APPROVE, DECLINE, REVIEW], [0.1, 0.9, 0.5], "live")
    mine = verdicts([REVIEW, APPROVE], [0.6, 0.2], "mine")
    mask = np.array([True, False, False, True, False])
    both = merged(live, mine, Tried(mask, "2", "new"))
    assert both.codes.tolist() == [REVIEW, APPROVE, DECLINE, APPROVE, REVIEW]
    assert both.scores is not None
    assert both.scores.tolist() == pytest.approx([0.6, 0.1, 0.9, 0.2, 0.5])
    assert both.flagged.tolist() == [0, 2, 4]
    assert both.ready
    assert [why[0].text for why in both.reasons()] == ["mine 0", "live 1", "live 2"]


@pytest.mark.parametrize("whole", ["live", "mine"])
def test_a_batch_may_belong_to_one_of_them_alone(whole: str) -> None:
    full, empty = verdicts([REVIEW], [0.6], whole), verdicts([], [], "nobody")
    mask = np.array([whole == "mine"])
    both = merged(*((full, empty) if whole == "live" else (empty, full)), Tried(mask, "2", "new"))
    assert both.codes.tolist() == [REVIEW]
    assert [why[0].text for why in both.reasons()] == [f"{whole} 0"]


def test_the_candidates_time_counts_from_the_live_versions_answer() -> None:
    answer: Any = Answer(np.zeros((1, 2), dtype=np.float32))
    waits: list[float] = []
    lane: Any = SimpleNamespace(timeout_s=0.05, answer=lambda _, wait_s: waits.append(wait_s))
    part = CanaryPart(lane, np.array([True]), answer.rows, answer)
    time.sleep(0.06)  # the live version has not answered yet
    assert not part.has_answer()
    time.sleep(0.06)
    assert part.has_answer()  # there is none, and it is no longer waited for
    part.scores()
    fresh = CanaryPart(lane, np.array([True]), answer.rows, answer)
    fresh.scores()
    assert waits == [0.0, 0.05]
    answer.done = True
    assert CanaryPart(lane, np.array([True]), answer.rows, answer).has_answer()
