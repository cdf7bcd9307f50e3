"""The streamer's watch: a bounded sample, a reference asked for once, gauges that tell of drift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flagger.drift import WINDOW_ROWS
from flagger.errors import ModelUnavailableError
from flagger.feature_sample import SAMPLE_FILE, read_sample
from flagger.features import FEATURE_NAMES
from flagger.models import ModelVersion, live_version, load_version, version_folder
from flagger.settings import Settings
from streamer.drift_watch import DriftWatch, evenly
from streamer.metrics import StreamerMetrics

REPOSITORY = Path(__file__).parents[2] / "model_repository"


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


class Answer:
    """What a request to Triton comes to: scores by the amount, or an error."""

    done = True

    def __init__(self, rows: npt.NDArray[np.float32], error: Exception | None) -> None:
        self._rows, self._error = rows, error

    def result(self, _timeout_s: float) -> npt.NDArray[np.float32]:
        if self._error is not None:
            raise self._error
        return scores_of(self._rows)


class Server:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.error: Exception | None = None

    def submit(self, rows: npt.NDArray[np.float32], _model: Any) -> Answer:
        self.asked.append(len(rows))
        return Answer(rows, self.error)


def scores_of(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return (1 / (1 + np.exp(3 - rows[:, 0] / 100))).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> ModelVersion:
    return load_version(REPOSITORY, live_version(REPOSITORY))


@pytest.fixture(scope="module")
def sample(model: ModelVersion) -> npt.NDArray[np.float32]:
    rows = read_sample(version_folder(REPOSITORY, model.version) / SAMPLE_FILE, FEATURE_NAMES)
    assert rows is not None
    return rows


class World:
    def __init__(self, model: ModelVersion, rows: npt.NDArray[np.float32], **settings: Any) -> None:
        self.server, self.clock, self.metrics = Server(), Clock(), StreamerMetrics()
        self.rng = np.random.default_rng(0)
        self.rows = rows
        chosen = Settings(model_repository=REPOSITORY, **settings)
        server: Any = self.server
        self.watch = DriftWatch(model, server, chosen, self.metrics, self.clock)

    def send(self, n: int, amount_factor: float = 1.0, seconds: float = 1.0) -> None:
        self.clock.s += seconds
        rows = self.rows[self.rng.integers(0, len(self.rows), n)].copy()
        rows[:, 0] *= amount_factor
        self.watch.observe(rows, scores_of(rows), np.ones((n, 4), dtype=np.uint64))

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"flagger_streamer_{name}", labels)


def test_it_looks_at_a_bounded_share_whatever_the_load(
    model: ModelVersion, sample: npt.NDArray[np.float32]
) -> None:
    world = World(model, sample, drift_rows_per_s=200)
    world.send(10)  # asks for the reference
    world.send(10)  # has it
    assert world.server.asked == [4_096]
    for _ in range(50):
        world.send(4_096, seconds=0.02)
    assert world.value("drift_rows_total") == 200 + 49 * 4  # a full purse, then what is allowed
    world.send(100, seconds=60)
    assert world.value("drift_rows_total") == 496


def test_a_drift_raises_the_alarm_and_another_version_begins_anew(
    model: ModelVersion, sample: npt.NDArray[np.float32]
) -> None:
    world = World(model, sample, drift_rows_per_s=10_000)
    for _ in range(WINDOW_ROWS // 1_000 + 2):
        world.send(1_000)
    assert world.value("drift_alarm", kind="feature") == 0
    psi = world.value("drift_psi", feature="amount")
    assert psi is not None
    assert psi < 0.02
    for _ in range(8):
        world.send(1_000, amount_factor=2.0)
    assert world.value("drift_alarm", kind="feature") == 1
    assert world.value("drift_alarm", kind="score") == 1
    assert world.value("drift_alarm", kind="unknown") == 0
    world.watch.use(replace(model, policy=model.own_policy))  # other thresholds: goes on
    assert world.value("drift_alarm", kind="feature") == 1
    world.watch.use(replace(model, version="99"))  # has no sample: not watched
    assert world.value("drift_alarm", kind="feature") == 0
    assert world.value("drift_psi", feature="amount") is None
    world.send(1_000)
    assert world.server.asked == [4_096]


def test_a_server_that_is_away_is_asked_again_later(
    model: ModelVersion, sample: npt.NDArray[np.float32]
) -> None:
    world = World(model, sample)
    world.server.error = ModelUnavailableError("away")
    for _ in range(4):
        world.send(10)
    assert len(world.server.asked) == 1
    world.server.error = None
    world.send(10, seconds=11)
    world.send(10)
    world.send(10)
    assert len(world.server.asked) == 2
    assert world.value("drift_rows_total") == 10


def test_it_can_be_turned_off(model: ModelVersion, sample: npt.NDArray[np.float32]) -> None:
    world = World(model, sample, drift_rows_per_s=0)
    world.send(10)
    assert world.server.asked == []


def test_places_are_spread_evenly() -> None:
    assert evenly(10, 3).tolist() == [0, 3, 6]
    assert evenly(10, 0).tolist() == []
    assert evenly(4, 4).tolist() == [0, 1, 2, 3]
