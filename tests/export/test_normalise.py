"""The normalised file answers as the booster does; what cannot be served is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from export.normalise import NormalisedModel, normalise, scores_of
from export.parity import boundary_rows
from flagger.errors import PublishError
from flagger.features import FEATURE_NAMES


def saved(booster: Any, folder: Path, name: str = "model.json") -> Path:
    booster.save_model(folder / name)
    return folder / name


def reread(model: NormalisedModel) -> Any:
    booster = xgboost.Booster()
    booster.load_model(bytearray(model.text.encode()))
    return booster


def test_base_score_is_one_number_and_there_is_no_cats_block(booster: Any, tmp_path: Path) -> None:
    raw = json.loads(bytes(booster.save_raw("json")))["learner"]
    assert raw["learner_model_param"]["base_score"].startswith("[")
    assert "cats" in raw["gradient_booster"]["model"]

    model = normalise(saved(booster, tmp_path), FEATURE_NAMES)

    learner = json.loads(model.text)["learner"]
    assert 0 < float(learner["learner_model_param"]["base_score"]) < 1
    assert "cats" not in learner["gradient_booster"]["model"]
    rows = boundary_rows(model, 2_000)
    np.testing.assert_array_equal(scores_of(reread(model), rows), scores_of(booster, rows))


@pytest.mark.parametrize("name", ["model.json", "model.ubj"])
def test_trees_are_cut_at_the_best_iteration(early_stopped: Any, tmp_path: Path, name: str) -> None:
    model = normalise(saved(early_stopped, tmp_path, name), FEATURE_NAMES)

    best = early_stopped.best_iteration + 1
    assert model.n_trees == best < early_stopped.num_boosted_rounds()
    rows = boundary_rows(model, 2_000)
    matrix = xgboost.DMatrix(rows, feature_names=list(FEATURE_NAMES))
    np.testing.assert_array_equal(
        scores_of(reread(model), rows), early_stopped.predict(matrix, iteration_range=(0, best))
    )
    assert np.abs(scores_of(model.booster, rows) - early_stopped.predict(matrix)).max() > 0.01


def test_a_forest_is_cut_by_iterations_not_by_trees(train_booster: Any, tmp_path: Path) -> None:
    forest = train_booster(
        rounds=100, early_stopping=True, num_parallel_tree=3, subsample=0.7, colsample_bynode=0.7
    )
    model = normalise(saved(forest, tmp_path), FEATURE_NAMES)
    assert model.n_trees == 3 * (forest.best_iteration + 1) < 3 * forest.num_boosted_rounds()


def test_a_model_that_was_cut_before_stays_as_it_is(early_stopped: Any, tmp_path: Path) -> None:
    cut = early_stopped[: early_stopped.best_iteration + 1]
    cut.set_attr(best_iteration=str(early_stopped.best_iteration))
    assert normalise(saved(cut, tmp_path), FEATURE_NAMES).n_trees == cut.num_boosted_rounds()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"booster": "dart", "rate_drop": 0.3}, "dart"),
        ({"booster": "gblinear"}, "gblinear"),
        ({"objective": "reg:squarederror"}, "binary:logistic"),
        ({"objective": "multi:softprob", "num_class": 3}, "binary:logistic"),
        ({"names": [f"f{i}" for i in range(len(FEATURE_NAMES))]}, "'f0'"),
    ],
)
def test_models_that_would_be_served_wrong_are_refused(
    train_booster: Any, tmp_path: Path, parameters: dict[str, Any], said: str
) -> None:
    path = saved(train_booster(rounds=3, **parameters), tmp_path)
    with pytest.raises(PublishError, match="cannot be served") as error:
        normalise(path, FEATURE_NAMES)
    assert said in str(error.value)


def test_several_outputs_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(100, len(FEATURE_NAMES)))
    booster = xgboost.train(
        {"objective": "binary:logistic", "nthread": 1},
        xgboost.DMatrix(rows, (rows[:, :2] > 0).astype(float)),
        2,
    )
    with pytest.raises(PublishError, match="several outputs"):
        normalise(saved(booster, tmp_path), FEATURE_NAMES)


def test_categorical_splits_are_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 4, size=(500, len(FEATURE_NAMES))).astype(float)
    matrix = xgboost.DMatrix(
        rows,
        np.isin(rows[:, 0], (1, 3)),
        feature_types=["c"] * rows.shape[1],
        enable_categorical=True,
    )
    booster = xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 3)
    with pytest.raises(PublishError, match="categorical splits"):
        normalise(saved(booster, tmp_path), FEATURE_NAMES)


def test_another_number_of_features_is_refused(booster: Any, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=f"takes {len(FEATURE_NAMES)} features.* has 3"):
        normalise(saved(booster, tmp_path), FEATURE_NAMES[:3])


@pytest.mark.parametrize("attributes", [{"missing": "-999"}, {"scikit_learn": '{"missing": -999}'}])
def test_another_missing_value_than_nan_is_refused(
    booster: Any, tmp_path: Path, attributes: dict[str, str]
) -> None:
    marked = booster.copy()
    marked.set_attr(**attributes)
    with pytest.raises(PublishError, match="missing=-999"):
        normalise(saved(marked, tmp_path), FEATURE_NAMES)


def test_nan_as_recorded_missing_value_is_accepted(booster: Any, tmp_path: Path) -> None:
    marked = booster.copy()
    marked.set_attr(missing="nan")
    assert normalise(saved(marked, tmp_path), FEATURE_NAMES).n_trees == 40


def test_a_model_of_a_newer_xgboost_is_refused(booster: Any, tmp_path: Path) -> None:
    path = saved(booster, tmp_path)
    document = json.loads(path.read_text())
    document["version"] = [99, 1, 0]
    path.write_text(json.dumps(document))
    with pytest.raises(PublishError, match=r"99\.1\.0.*installed"):
        normalise(path, FEATURE_NAMES)


@pytest.mark.parametrize("content", ["", "{}", "not a model", '{"version": [3, 2, 0]}'])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(PublishError, match="cannot be read as an XGBoost model"):
        normalise(path, FEATURE_NAMES)
