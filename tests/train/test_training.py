"""`flagger train` from a file to everything it writes."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xgboost as xgb
from click.testing import CliRunner
from sklearn.metrics import roc_auc_score

from flagger.cli import COMMANDS
from flagger.errors import ConfigurationError, DataError
from flagger.features import CATEGORY_FIELDS, DUPLICATE, FEATURE_NAMES, FeatureContract
from flagger.policy import Policy
from train.cli import train
from train.fit import Hyperparameters
from train.money import CostMatrix
from train.pipeline import STEPS, TrainingPlan, TrainingResult, train_model
from train.replay import replay
from train.report import PLOTS
from train.simulate import SimulationConfig, simulate
from train.threshold import PolicyTargets
from train.vocabulary import build_vocabularies

PLAN = TrainingPlan(seed=4, hyperparameters=Hyperparameters(max_trees=30))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated transactions; one of the test window is there twice, one has no outcome."""
    config = SimulationConfig(customers=400, terminals=250, days=45, start=date(2026, 1, 1), seed=2)
    table = pa.Table.from_batches(simulate(config)).combine_chunks()
    n = table.num_rows
    table = table.take([*range(n - 9), n - 10, *range(n - 9, n)])
    known = np.arange(n + 1) != n - 3
    labels = pa.array(table["is_fraud"].to_numpy(), mask=~known)
    table = table.set_column(9, table.schema.field("is_fraud"), labels)
    path = tmp_path_factory.mktemp("data") / "payments.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def steps() -> list[str]:
    return []


@pytest.fixture(scope="module")
def trained(
    data: Path, steps: list[str], tmp_path_factory: pytest.TempPathFactory
) -> TrainingResult:
    return train_model(data, tmp_path_factory.mktemp("model") / "new", PLAN, on_step=steps.append)


def test_writes_everything(trained: TrainingResult, steps: list[str]) -> None:
    names = {str(p.relative_to(trained.directory)) for p in trained.directory.rglob("*.*")}
    assert names == {
        "model.json",
        "contract.json",
        "policy.json",
        "metrics.json",
        "feature_sample.parquet",
        "scores.parquet",
        "model_card.md",
        *(f"plots/{name}.png" for name in PLOTS),
    }
    assert tuple(steps) == STEPS
    for name in PLOTS:
        image = (trained.directory / "plots" / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG")
        assert len(image) > 5_000


def test_written_files_are_what_the_result_says(trained: TrainingResult) -> None:
    def text(name: str) -> str:
        return (trained.directory / name).read_text(encoding="utf-8")

    assert json.loads(text("metrics.json")) == trained.metrics
    assert Policy.from_json(text("policy.json")) == trained.policy
    contract = FeatureContract.from_json(text("contract.json"))
    assert contract == trained.contract
    contract.require_current("model.json")
    card = text("model_card.md")
    assert f"{trained.metrics['test']['roc_auc']:.4f}" in card
    assert "nan" not in card.lower()


def test_scores_are_those_of_the_saved_model_on_replayed_rows(
    data: Path, trained: TrainingResult
) -> None:
    """The model on disk and the feature engine, asked independently of the pipeline."""
    scores = pq.read_table(trained.directory / "scores.parquet")
    assert scores.schema.names == [
        "transaction_id",
        "event_time",
        "customer_id",
        "score",
        "is_fraud",
    ]
    table = pq.read_table(data)
    results = list(replay(table.to_batches(max_chunksize=1_000), trained.contract))
    rows = np.concatenate([result.rows for result in results])
    flags = np.concatenate([result.flags for result in results])
    known = table["is_fraud"].is_valid().to_numpy()
    in_test = trained.windows.masks(table["event_time"].cast(pa.int64()).to_numpy())["test"]
    chosen = in_test & known & (flags & DUPLICATE == 0)
    assert in_test.sum() - chosen.sum() == 2  # the repeated one, and the one without an outcome
    expected = table.filter(pa.array(chosen))
    assert scores["transaction_id"].to_pylist() == expected["transaction_id"].to_pylist()
    booster = xgb.Booster(model_file=trained.directory / "model.json")
    assert booster.num_boosted_rounds() == trained.metrics["trees"]
    np.testing.assert_array_equal(
        scores["score"].to_numpy(), booster.predict(xgb.DMatrix(rows[chosen]))
    )
    auc = roc_auc_score(scores["is_fraud"].to_numpy(), scores["score"].to_numpy())
    assert auc == pytest.approx(trained.metrics["test"]["roc_auc"])
    assert auc > 0.7


def test_same_seed_same_model(data: Path, trained: TrainingResult, tmp_path: Path) -> None:
    train_model(data, tmp_path, PLAN)
    for name in ("model.json", "metrics.json", "policy.json", "contract.json"):
        assert (tmp_path / name).read_bytes() == (trained.directory / name).read_bytes()


def test_order_of_the_file_does_not_matter(
    data: Path, trained: TrainingResult, tmp_path: Path
) -> None:
    table = pq.read_table(data)
    by_customer = table.take(pa.compute.sort_indices(table, [("customer_id", "ascending")]))
    pq.write_table(by_customer, tmp_path / "mixed.parquet")
    again = train_model(tmp_path / "mixed.parquet", tmp_path / "out", PLAN)
    assert again.metrics["test"]["roc_auc"] == trained.metrics["test"]["roc_auc"]


def test_the_future_does_not_change_the_model(data: Path, tmp_path: Path) -> None:
    """Outcomes after the train window change neither trees nor vocabularies."""
    table = pq.read_table(data)
    plan = TrainingPlan(
        train_from=date(2026, 1, 8),
        train_to=date(2026, 1, 26),
        test_from=date(2026, 2, 4),
        hyperparameters=Hyperparameters(max_trees=5),
    )
    later = table["event_time"].cast(pa.int64()).to_numpy() >= 1_769_472_000_000  # 27 January
    labels = table["is_fraud"].to_pandas().to_numpy()
    changed = pa.array(np.where(later, ~labels.astype(bool), labels).astype(bool))
    field = table.schema.field("is_fraud")
    pq.write_table(table.set_column(9, field, changed), tmp_path / "changed.parquet")
    train_model(data, tmp_path / "a", plan)
    train_model(tmp_path / "changed.parquet", tmp_path / "b", plan)
    assert (tmp_path / "a" / "model.json").read_bytes() == (
        tmp_path / "b" / "model.json"
    ).read_bytes()


def test_leak_and_missing_outcomes_are_refused(data: Path, tmp_path: Path) -> None:
    close = TrainingPlan(train_to=date(2026, 2, 4), test_from=date(2026, 2, 8))
    with pytest.raises(ConfigurationError, match="label delay"):
        train_model(data, tmp_path, close)
    table = pq.read_table(data)
    pq.write_table(table.drop_columns(["is_fraud"]), tmp_path / "none.parquet")
    with pytest.raises(DataError, match="no transaction has an outcome"):
        train_model(tmp_path / "none.parquet", tmp_path)
    genuine = table.set_column(9, "is_fraud", pa.array(np.zeros(table.num_rows, bool)))
    pq.write_table(genuine, tmp_path / "genuine.parquet")
    with pytest.raises(DataError, match="0 of them fraud"):
        train_model(tmp_path / "genuine.parquet", tmp_path)


def test_folder_that_cannot_be_written_is_told_before_the_work(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    steps: list[str] = []
    with pytest.raises(ConfigurationError, match="Cannot write to --out"):
        train_model(data, tmp_path / "file" / "out", PLAN, on_step=steps.append)
    assert steps == []


def test_vocabulary_comes_from_the_fitted_rows_in_order_of_fraud_share() -> None:
    n = 4_000
    words = np.where(np.arange(n) % 4 == 0, "risky", "safe").astype(object)
    words[:10] = "rare"
    words[3_000:] = "later"
    fraud = (words == "risky") & (np.arange(n) % 8 == 0)
    columns: dict[str, object] = dict.fromkeys(CATEGORY_FIELDS, words)
    columns["country"] = np.full(n, None)
    columns["currency"] = np.full(n, "")
    table = pa.table({**columns, "is_fraud": fraud}).cast(
        pa.schema([*((name, pa.string()) for name in CATEGORY_FIELDS), ("is_fraud", pa.bool_())])
    )
    found = build_vocabularies(table, np.arange(n) < 3_000)
    assert found["channel"] == ("safe", "risky")
    assert found["country"] == ()
    assert found["currency"] == ()


def test_command_trains_warns_of_leakage_and_shows_the_measures(data: Path, tmp_path: Path) -> None:
    assert COMMANDS["train"][0] == "train.cli:train"
    (tmp_path / "map.toml").write_text('[columns]\nchannel = "channel"\n', encoding="utf-8")
    arguments = ["--data", str(data), "--out", str(tmp_path / "out"), "--allow-leakage"]
    arguments += ["--columns", str(tmp_path / "map.toml"), "--train-to", "2026-02-04"]
    arguments += ["--set", "max_trees=20"]
    result = CliRunner().invoke(train, [*arguments, "--test-from", "2026-02-08"])
    assert result.exit_code == 0, result.output
    assert "gap before the test window is 3 days" in result.stderr
    assert "average precision" in result.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["leakage"] is True
    assert list(metrics["feature_gain"]) != list(FEATURE_NAMES)
    assert sorted(metrics["feature_gain"]) == sorted(FEATURE_NAMES)
    assert "too good" in (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")


def test_search_and_costs_end_up_in_the_model(data: Path, tmp_path: Path) -> None:
    trials: list[int] = []
    plan = TrainingPlan(
        train_from=date(2026, 1, 3),
        train_to=date(2026, 2, 2),
        test_from=date(2026, 2, 10),
        hyperparameters=Hyperparameters(max_trees=6),
        targets=PolicyTargets(costs=CostMatrix(review_cost=2.0, friction_cost=50.0)),
        search_trials=2,
    )
    result = train_model(data, tmp_path, plan, on_trial=lambda done, _best: trials.append(done))
    assert trials == [0, 1, 2]
    found = json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))
    assert result.metrics["hyperparameters"] == found["best"]
    assert result.metrics["search_trials"] == 2
    policy = json.loads((tmp_path / "policy.json").read_text(encoding="utf-8"))
    assert policy["targets"]["costs"] == {"review_cost": 2.0, "friction_cost": 50.0}
    card = (tmp_path / "model_card.md").read_text(encoding="utf-8")
    assert "saved most money" in card
    saved = [point["money_saved_per_day"] for point in result.metrics["trade_off"]]
    assert max(saved) > 0.0


def test_command_takes_reviews_a_day_or_costs(data: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(data), "--out", str(tmp_path)]
    both = [*arguments, "--reviews-per-day", "10", "--review-cost", "3"]
    refused = CliRunner().invoke(train, both)
    assert isinstance(refused.exception, ConfigurationError)
    arguments += ["--set", "max_trees=20"]
    result = CliRunner().invoke(train, [*arguments, "--reviews-per-day", "10"])
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["policy"]["targets"]["reviews_per_day"] == 10
    days = 6  # of the validation: 15 % of what is left of 45 days, at most
    assert 0 < metrics["validation"]["flags"]["flagged"] <= 10 * days
    card = (tmp_path / "model_card.md").read_text(encoding="utf-8")
    assert "at most 10 transactions a day" in card
