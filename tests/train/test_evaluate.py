"""`flagger evaluate` from a file to its report."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.metrics import average_precision_score, roc_auc_score

from flagger.cli import COMMANDS
from flagger.errors import ConfigurationError
from flagger.features import CATALOGUE
from train.ablation import feature_groups
from train.baselines import BASELINES
from train.evaluate import TREES, Evaluation, EvaluationPlan, evaluate_file
from train.evaluate_cli import evaluate
from train.fit import Hyperparameters
from train.prequential import PrequentialPlan
from train.segments import lift_table
from train.simulate import SimulationConfig, simulate
from train.sources import read_sorted

PLAN = EvaluationPlan(
    prequential=PrequentialPlan(periods=2, train_days=30, test_days=7),
    hyperparameters=Hyperparameters(max_trees=15),
    baselines=False,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = SimulationConfig(customers=300, terminals=200, days=60, start=date(2026, 1, 1), seed=4)
    path = tmp_path_factory.mktemp("data") / "payments.parquet"
    pq.write_table(pa.Table.from_batches(simulate(config)), path)
    return path


@pytest.fixture(scope="module")
def evaluation(data: Path) -> Evaluation:
    return evaluate_file(data, PLAN)


def test_measures_are_those_of_the_scores(evaluation: Evaluation) -> None:
    measures = evaluation.measures
    start = 0
    for period in measures["periods"]:
        part = slice(start, start + period["transactions"])
        start += period["transactions"]
        outcome = evaluation.is_fraud[part]
        assert outcome.sum() == period["frauds"]
        for name in (TREES, "rules"):
            scores = evaluation.scores[name][part]
            found = period["models"][name]
            assert found["roc_auc"] == pytest.approx(roc_auc_score(outcome, scores))
            assert found["average_precision"] == pytest.approx(
                average_precision_score(outcome, scores)
            )
    assert start == len(evaluation.is_fraud)
    found = measures["summary"][TREES]["roc_auc"]
    values = [period["models"][TREES]["roc_auc"] for period in measures["periods"]]
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["low"] < found["mean"] < found["high"]
    assert "brier" not in measures["summary"]["rules"]
    for row in measures["reviews_saved"].values():
        assert row["reviews_model"] > 0


def test_segments_add_up_to_the_judged_transactions(evaluation: Evaluation) -> None:
    segments = evaluation.measures["segments"]
    assert {"amount", "channel", "country"} <= set(segments)
    bands = segments["amount"]
    assert [row["segment"] for row in bands][:3] == ["below 10", "10 to 25", "25 to 50"]
    assert sum(row["transactions"] for row in bands) == len(evaluation.is_fraud)
    assert sum(row["frauds"] for row in bands) == int(evaluation.is_fraud.sum())


def test_immature_outcomes_change_nothing(
    data: Path, evaluation: Evaluation, tmp_path: Path
) -> None:
    """As if nobody had reported a fraud of the last week yet: the same figures."""
    table = pq.read_table(data)
    times = table["event_time"].cast(pa.int64()).to_numpy()
    mature = evaluation.measures["maturity"]
    assert (mature["mature_to"], mature["immature_days"]) == ("2026-02-22", 7)
    last_week = times >= 1_771_804_800_000  # 23 February
    assert int(last_week.sum()) == mature["immature_transactions"]
    hidden = pa.array(table["is_fraud"].to_numpy() & ~last_week)
    path = tmp_path / data.name
    pq.write_table(table.set_column(9, table.schema.field("is_fraud"), hidden), path)
    assert evaluate_file(path, PLAN).measures == evaluation.measures


def test_too_few_days_are_refused(data: Path) -> None:
    plan = EvaluationPlan(prequential=PrequentialPlan(periods=9))
    with pytest.raises(ConfigurationError, match="fewer periods"):
        evaluate_file(data, plan)
    with pytest.raises(ConfigurationError, match=r"begins on 2026-01-01: .* from 2025-12-31 on"):
        evaluate_file(data, replace(PLAN, train_from=date(2025, 12, 31)))


def test_command_writes_a_report_that_stands_alone(
    data: Path, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COMMANDS["evaluate"][0] == "train.evaluate_cli:evaluate"
    arguments = ["--data", str(data), "--out", str(tmp_path / "new"), "--periods", "1"]
    arguments += ["--train-days", "30", "--known-days", "5", "--ablation", "--handbook-ceiling"]
    arguments += ["--set", "max_trees=15", "--set", "max_depth=4"]
    reads: list[Path] = []

    def counted(path: Path, *columns: Any) -> pa.Table:
        reads.append(path)
        return read_sorted(path, *columns)

    monkeypatch.setattr("train.evaluate.read_sorted", counted)
    result = CliRunner().invoke(evaluate, arguments)
    assert result.exit_code == 0, result.output
    assert reads == [data]
    assert "Reviews saved" in result.stdout
    assert "7 days after 2026-02-22 are not mature" in result.stdout
    text = (tmp_path / "new" / "evaluation.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    assert set(found["summary"]) == {TREES, *BASELINES}
    assert (found["hyperparameters"]["max_trees"], found["hyperparameters"]["max_depth"]) == (15, 4)
    fewer_days = found["periods"][-1]["known_compromised_transactions"]
    all_days = evaluation.measures["periods"][-1]["known_compromised_transactions"]
    assert 0 < fewer_days < all_days
    assert found["ablation"]["variants"][0]["variant"] == "all features"
    whole = found["periods"][0]["models"][TREES]["roc_auc"]
    assert found["ablation"]["variants"][0]["roc_auc"] == pytest.approx(whole)
    assert found["handbook_ceiling"][0]["roc_auc"] == pytest.approx(whole)
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert f"{whole:.3f}" in page
    assert "by chance" in page


def test_groups_hold_each_feature_once() -> None:
    columns = [column for group in feature_groups().values() for column in group]
    assert sorted(columns) == list(range(len(CATALOGUE)))


def test_lift_by_hand() -> None:
    scores = np.linspace(1.0, 0.0, 1_000, dtype=np.float32)
    is_fraud = np.zeros(1_000, dtype=bool)
    is_fraud[[0, 1, 2, 30]] = True
    rows = {row["share"]: row for row in lift_table(scores, is_fraud)}
    assert rows[0.001]["gain"] == 0.25
    assert rows[0.005]["gain"] == 0.75
    assert rows[0.005]["lift"] == pytest.approx(0.75 / 0.005)
    assert rows[0.5]["gain"] == 1.0
