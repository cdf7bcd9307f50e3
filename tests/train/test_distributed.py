"""`flagger train --engine dask` against training on one machine: the same rows, alike trees."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

from flagger.errors import (
    DataError,
)
from flagger.features import CATEGORY_FIELDS, FEATURE_NAMES, FeatureContract
from train.distributed import train_distributed
from train.distributed_cluster import DaskCluster
from train.distributed_fit import area_under_precision_recall
from train.distributed_replay import PartitionRows, replay_partition, share_activity
from train.distributed_shuffle import PLACE, Summary, plan_pieces, shuffle_piece
from train.fit import Hyperparameters
from train.pipeline import STEPS, TrainingPlan, TrainingResult, train_model
from train.rows import replay_windows
from train.simulate import SimulationConfig, simulate
from train.sources import SCHEMA, ColumnMap, read_sorted
from train.split import Windows, choose_windows
from train.vocabulary import build_vocabularies

# No sampling, so that only the merged sketches of values tell the engines apart.
PLAN = TrainingPlan(
    seed=4, hyperparameters=Hyperparameters(max_trees=40, subsample=1.0, colsample_bytree=1.0)
)
MOST_AUC_DIFFERENCE = 0.005
MOST_MEAN_SCORE_DIFFERENCE = 0.02


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files, out of order, with equal times, repeats and unknown outcomes.

    Large amounts at half of the terminals are fraud more often than not: with the few frauds of the
    simulator, AUC would differ by chance more than by the engine.
    """
    config = SimulationConfig(customers=500, terminals=80, days=45, start=date(2026, 1, 1), seed=2)
    table = pa.Table.from_batches(simulate(config)).combine_chunks()
    rng = np.random.default_rng(0)
    n = table.num_rows
    minutes = table["event_time"].cast(pa.int64()).to_numpy() // 600_000 * 600_000
    amounts = table["amount"].to_numpy()
    odd = np.array([int(name[1:]) % 2 for name in table["terminal_id"].to_pylist()], dtype=bool)
    chance = np.where(odd & (amounts > np.quantile(amounts, 0.9)), 0.7, 0.01)
    labels = pa.array(rng.random(n) < chance, mask=rng.random(n) < 0.03)
    times = pa.array(minutes).cast(pa.timestamp("ms", "UTC"))
    table = table.set_column(1, SCHEMA.field("event_time"), times)
    table = table.set_column(9, SCHEMA.field("is_fraud"), labels)
    # Some come again a little later; and the last third of all stands first in the files.
    order = np.sort(np.concatenate([np.arange(n), rng.integers(0, n, n // 50)]))
    table = table.take(np.roll(order, n // 3))
    folder = tmp_path_factory.mktemp("payments") / "data"
    folder.mkdir()
    pq.write_table(table.slice(0, n // 2), folder / "a.parquet", row_group_size=3_000)
    pq.write_table(table.slice(n // 2), folder / "b.parquet", row_group_size=5_000)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    """The same in one file, for the engine that takes one file."""
    name = data.parent / "whole.parquet"
    parts = [pq.read_table(data / part) for part in ("a.parquet", "b.parquet")]
    pq.write_table(pa.concat_tables(parts), name)
    return name


def partitions_of(
    data: Path, scratch: Path, contract: FeatureContract, windows: Windows, partitions: int
) -> tuple[list[PartitionRows], Summary]:
    """All that workers do before XGBoost begins, one task after the other."""
    pieces, rows = plan_pieces(data, 4_000)
    assert len(pieces) > 4
    summary = Summary.merge(
        [shuffle_piece(piece, ColumnMap(), partitions, scratch) for piece in pieces]
    )
    assert summary.rows == rows
    shared = [share_activity(number, contract, scratch) for number in range(partitions)]
    assert sum(shared) == rows
    assert min(shared) > 0.1 * rows / partitions
    found = [replay_partition(n, contract, windows, scratch) for n in range(partitions)]
    return found, summary


@pytest.mark.parametrize("label_delay_days", [0, 7])
def test_rows_are_bit_equal_to_those_of_one_replay(
    data: Path, whole: Path, tmp_path: Path, label_delay_days: int
) -> None:
    table = read_sorted(whole)
    times = table["event_time"].cast(pa.int64()).to_numpy()
    windows = choose_windows(int(times[0]), int(times[-1]), label_delay_days)
    masks = windows.masks(times)
    contract = FeatureContract(build_vocabularies(table, masks["fit"]), label_delay_days)
    expected, duplicates = replay_windows(table, masks, contract)
    parts, summary = partitions_of(data, tmp_path, contract, windows, 3)
    assert sum(part.duplicates for part in parts) == duplicates > 100
    assert (summary.first_ms, summary.last_ms) == (times[0], times[-1])
    assert summary.unlabelled == table["is_fraud"].null_count > 100
    in_file = pq.read_table(whole)["event_time"].cast(pa.int64()).to_numpy()
    place_in_table = np.argsort(np.argsort(in_file, kind="stable"), kind="stable")
    for name, window in expected.items():
        rows = np.concatenate([part.rows[name] for part in parts])
        outcomes = np.concatenate([part.is_fraud[name] for part in parts])
        if name == "fit":  # no places are kept; the same rows with the same outcomes, in any order
            assert sorted_pairs(rows, outcomes) == sorted_pairs(window.rows, window.is_fraud)
            continue
        found = np.concatenate([part.named[name][PLACE].to_numpy() for part in parts])
        order = np.argsort(place_in_table[found])
        assert place_in_table[found][order].tobytes() == window.place.tobytes()
        assert rows[order].tobytes() == window.rows.tobytes()
        assert outcomes[order].tobytes() == window.is_fraud.tobytes()
    # The comparison means something: terminals have frauds that other partitions' customers made.
    column = FEATURE_NAMES.index("terminal_fraud_count_7d")
    assert np.nanmax(expected["test"].rows[:, column]) >= 10


def sorted_pairs(
    rows: npt.NDArray[np.float32], outcomes: npt.NDArray[np.bool_]
) -> list[tuple[bytes, bool]]:
    return sorted(zip((row.tobytes() for row in rows), outcomes.tolist(), strict=True))


@pytest.fixture(scope="module")
def single(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    return train_model(whole, tmp_path_factory.mktemp("single"), PLAN)


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def clustered(
    data: Path, steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    out = tmp_path_factory.mktemp("clustered")
    cluster = DaskCluster(workers=2, memory_limit="2 GiB", partition_rows=15_000)
    return train_distributed(
        data,
        out,
        PLAN,
        cluster,
        on_step=steps.append,
        on_part=lambda finished, parts: steps.append(f"{finished}/{parts}"),
    )


def test_trees_judge_alike(single: TrainingResult, clustered: TrainingResult) -> None:
    for window in ("validation", "test"):
        aucs = [result.metrics[window]["roc_auc"] for result in (single, clustered)]
        assert min(aucs) > 0.8
        assert abs(aucs[0] - aucs[1]) < MOST_AUC_DIFFERENCE
    tables = [pq.read_table(r.directory / "scores.parquet") for r in (single, clustered)]
    others = [name for name in tables[0].schema.names if name != "score"]
    assert tables[0].select(others).equals(tables[1].select(others))
    scores = [table["score"].to_numpy() for table in tables]
    assert np.abs(scores[0] - scores[1]).mean() < MOST_MEAN_SCORE_DIFFERENCE
    assert np.corrcoef(scores[0], scores[1])[0, 1] > 0.98


def test_writes_the_same_files(single: TrainingResult, clustered: TrainingResult) -> None:
    names = [
        {str(p.relative_to(r.directory)) for p in r.directory.rglob("*")}
        for r in (single, clustered)
    ]
    assert names[0] == names[1]  # so the partitions, with their transactions, are gone
    assert clustered.contract == single.contract
    metrics = json.loads((clustered.directory / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == clustered.metrics
    assert metrics["engine"] == {"name": "dask", "workers": 2, "partitions": 4}
    same = ("windows", "hyperparameters", "feature_hash", "fit", "leakage", "label_delay_days")
    for name in same:
        assert metrics[name] == single.metrics[name], name
    assert metrics["data"] | {"file": ""} == single.metrics["data"] | {"file": ""}
    samples = [pq.read_table(r.directory / "feature_sample.parquet") for r in (single, clustered)]
    for column in FEATURE_NAMES:
        values = [sample[column].to_numpy() for sample in samples]
        assert values[0].tobytes() == values[1].tobytes(), column
    booster = xgb.Booster(model_file=clustered.directory / "model.json")
    assert booster.num_boosted_rounds() == metrics["trees"]


def test_progress_is_shown(clustered: TrainingResult, steps: list[str]) -> None:
    assert tuple(step for step in steps if "/" not in step) == STEPS
    finished, _, pieces = steps[steps.index("replay") - 1].partition("/")
    assert int(finished) == int(pieces) >= 4
    assert steps[steps.index("fit") - 1] == "8/8"  # twice over four partitions


def test_stopping_measure_is_xgboosts_over_all_rows() -> None:
    rng = np.random.default_rng(3)
    outcomes = rng.random(20_000) < 0.05
    rows = rng.normal(size=(20_000, 4)).astype(np.float32)
    rows[:, 0] += outcomes
    matrix = xgb.DMatrix(rows, outcomes)
    booster = xgb.train({"objective": "binary:logistic", "eval_metric": "aucpr"}, matrix, 20)
    expected = float(booster.eval(matrix).split(":")[1])
    _, found = area_under_precision_recall(booster.predict(matrix), matrix)
    assert found == pytest.approx(expected, abs=2e-4)


def test_a_bad_cell_is_named_by_its_row_in_the_file(tmp_path: Path) -> None:
    config = SimulationConfig(customers=20, terminals=5, days=4, seed=1)
    table = pa.Table.from_batches(simulate(config)).combine_chunks()
    amounts = table["amount"].to_numpy().copy()
    amounts[45] = -1.0
    table = table.set_column(4, "amount", pa.array(amounts))
    pq.write_table(table, tmp_path / "bad.parquet", row_group_size=20)
    pieces, _ = plan_pieces(tmp_path / "bad.parquet", 20)
    with pytest.raises(DataError, match=r"row 46, column 'amount', value -1\.0"):
        shuffle_piece(pieces[2], ColumnMap(), 2, tmp_path / "scratch")


def test_every_category_field_is_counted(data: Path, whole: Path, tmp_path: Path) -> None:
    pieces, _ = plan_pieces(data, 10_000)
    summary = Summary.merge([shuffle_piece(p, ColumnMap(), 2, tmp_path) for p in pieces])
    table = read_sorted(whole)
    for name in CATEGORY_FIELDS:
        assert (
            int(summary.categories[name]["size"].sum()) == table.num_rows - table[name].null_count
        )
