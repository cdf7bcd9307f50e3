"""`flagger drift check`: silent on traffic as before, and in time when it changes."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from export.publish import export_model
from flagger.drift import BLOCK_ROWS, DriftLimits, DriftWindow, alarms
from flagger.errors import ConfigurationError
from flagger.features import FEATURE_NAMES
from flagger.models import load_version
from train.drift_check import reference_of
from train.drift_cli import drift
from train.fit import Hyperparameters, predict
from train.pipeline import TrainingPlan, train_model
from train.replay import Replay
from train.simulate import SimulationConfig, simulate
from train.sources import read_sorted, to_batch
from train.split import start_of_day_ms

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A file of 64 days, and a repository whose model learned from the first 46."""
    folder = tmp_path_factory.mktemp("drift")
    size = SimulationConfig(customers=1_000, terminals=700, days=64, seed=5)
    table = pa.Table.from_batches(simulate(size))
    pq.write_table(table, folder / "all.parquet")
    early = pc.less(table["event_time"], pa.scalar(datetime(2026, 2, 16, tzinfo=UTC)))
    pq.write_table(table.filter(early), folder / "early.parquet")
    plan = TrainingPlan(hyperparameters=Hyperparameters(max_trees=30))
    trained = train_model(folder / "early.parquet", folder / "out", plan).directory
    export_model(trained, folder / "repository", n_parity_rows=100)
    return folder / "all.parquet", folder / "repository"


def check(world: tuple[Path, Path], *arguments: str) -> Result:
    data, repository = world
    common = ["check", "--data", str(data), "--repository", str(repository)]
    return CliRunner().invoke(drift, [*common, *arguments], catch_exceptions=False)


def test_traffic_as_before_raises_no_alarm(world: tuple[Path, Path], tmp_path: Path) -> None:
    result = check(world, "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "no alarm in" in result.output
    report = json.loads((tmp_path / "drift.json").read_text())
    assert report["transactions"] > 30_000
    assert report["first_alarm_at"] is None
    assert "No alarm in" in (tmp_path / "drift.html").read_text()


@pytest.mark.parametrize(
    ("drill", "named", "within"),
    [
        (["--amount-factor", "1.5"], "amount", 10_000),
        (["--new-country-share", "0.05"], "country", 6_000),
    ],
)
def test_a_drift_is_noticed_in_time(
    world: tuple[Path, Path], tmp_path: Path, drill: list[str], named: str, within: int
) -> None:
    # Eight days after the version's own: the window is full of traffic as before by then.
    result = check(world, *drill, "--inject-from", "2026-02-24", "--out", str(tmp_path))
    assert result.exit_code == 1
    report = json.loads((tmp_path / "drift.json").read_text())
    assert 0 < report["detection_delay"] <= within, report["first_alarms"]
    assert any(named in alarm["name"] for alarm in report["first_alarms"])
    assert report["windows"] > report["alarmed_windows"]
    assert "First alarm" in (tmp_path / "drift.html").read_text()


def test_too_few_transactions_are_an_error(world: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigurationError, match="needs a window of 10,000"):
        check(world, "--from", "2026-03-04")
    assert check(world, "--amount-factor", "0").exit_code == 2  # would have been no drill at all


def test_a_busy_streamers_window_of_one_hour_raises_no_alarm(world: tuple[Path, Path]) -> None:
    """At hundreds of rows a second a window is a minute long: each hour is compared with itself."""
    data, repository = world
    model = load_version(repository, "1")
    reference, booster = reference_of(repository, model)
    table = read_sorted(data)
    rows, keys = [], []
    history = Replay(model.contract)
    for chunk in table.to_batches(max_chunksize=10_000):
        batch = to_batch(chunk)
        rows.append(history.advance(batch, chunk.column("is_fraud").to_numpy(False)).rows)
        keys.append(batch.category_keys)
    late = table["event_time"].cast(pa.int64()).to_numpy() >= start_of_day_ms(date(2026, 2, 16))
    late_rows, late_keys = np.concatenate(rows)[late], np.concatenate(keys)[late]
    scores = predict(booster, late_rows)
    hours = late_rows[:, FEATURE_NAMES.index("hour_of_day")].astype(int)
    judged = 0
    for hour in range(24):
        mine = np.flatnonzero(hours == hour)
        window = DriftWindow(reference, window_rows=2 * BLOCK_ROWS)
        while len(mine):
            taken = window.add(late_rows[mine], scores[mine], late_keys[mine])
            mine = mine[taken:]
            if window.is_full and taken == BLOCK_ROWS:
                assert alarms(window.distances(), DriftLimits()) == [], hour
                judged += 1
    assert judged > 20
