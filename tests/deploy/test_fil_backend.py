"""The FIL stand-in against XGBoost itself, and against what the real backend refuses."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xgboost

from tests.deploy.conftest import (
    COLUMNS,
    FIL_PARAMETERS,
    Tensor,
    TritonModelException,
    random_rows,
    train,
)

OUTPUT, SHAP = "output__0", "treeshap_output"


def config(
    outputs: dict[str, int] | None = None, columns: int = COLUMNS, **changes: str | None
) -> dict[str, Any]:
    """Return a configuration; a change to None takes the parameter away."""
    parameters = {k: v for k, v in (FIL_PARAMETERS | changes).items() if v is not None}
    return {
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "input": [{"name": "input__0", "dims": [str(columns)]}],
        "output": [
            {"name": name, "dims": [str(width)]} for name, width in (outputs or {OUTPUT: 1}).items()
        ],
    }


@pytest.fixture
def backend(open_backend: Callable[[str], Any], booster: Any) -> Any:
    opened = open_backend("fil")
    booster.save_model(opened.repository / "1" / "xgboost.json")
    return opened


def ask(model: Any, *requests: Any) -> Any:
    return model.execute([{"input__0": Tensor("input__0", rows)} for rows in requests])


def test_one_column_is_squeezed_and_only_nan_is_missing(backend: Any, booster: Any) -> None:
    rows = random_rows(50)
    rows[0], rows[1], rows[2] = np.nan, np.inf, -np.inf
    (answer,) = ask(backend.load(config()), rows)
    assert answer[OUTPUT].shape == (50,)
    assert answer[OUTPUT].dtype == np.float32
    expected = booster.inplace_predict(rows, missing=np.nan)
    np.testing.assert_array_equal(answer[OUTPUT], expected)
    assert len(np.unique(expected[:3])) == 3  # the three rows take different branches


def test_two_columns_are_both_probabilities(backend: Any, booster: Any) -> None:
    rows = random_rows(20)
    (answer,) = ask(backend.load(config({OUTPUT: 2})), rows)
    positive = booster.inplace_predict(rows)
    np.testing.assert_array_equal(answer[OUTPUT], np.stack([1 - positive, positive], axis=1))
    assert backend.warnings == []


def test_one_column_of_probability_is_warned_of(backend: Any) -> None:
    backend.load(config())
    (warning,) = backend.warnings
    assert "25.08" in warning
    assert "dims [2]" in warning


def test_without_predict_proba_a_classifier_answers_classes(backend: Any, booster: Any) -> None:
    rows = random_rows(200)
    scores = booster.inplace_predict(rows)
    at = float(scores[0])  # the comparison is strict: this row is not above its own score
    model = backend.load(config(predict_proba="false", threshold=repr(at)))
    (answer,) = ask(model, rows)
    np.testing.assert_array_equal(answer[OUTPUT], (scores > at).astype(np.float32))
    assert answer[OUTPUT][0] == 0


def test_what_is_no_classifier_answers_the_score_and_needs_no_threshold(
    backend: Any, booster: Any
) -> None:
    rows = random_rows(20)
    asked = config(predict_proba=None, output_class="false", is_classifier="false", threshold=None)
    (answer,) = ask(backend.load(asked), rows)
    np.testing.assert_array_equal(answer[OUTPUT], booster.inplace_predict(rows))


def test_requests_of_one_call_get_their_own_rows(backend: Any, booster: Any) -> None:
    parts = [random_rows(n, seed=n) for n in (1, 7, 30)]
    answers = ask(backend.load(config()), *parts)
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_array_equal(answer[OUTPUT], booster.inplace_predict(part))


def test_a_bad_request_fails_alone(backend: Any, booster: Any) -> None:
    good = random_rows(3)
    answers = ask(backend.load(config()), good, random_rows(3, columns=4), good[0], good)
    assert [answer.error is None for answer in answers] == [True, False, False, True]
    assert answers[1].error == "input__0 must be [n, 5], not (3, 4)"
    for answer in (answers[0], answers[3]):
        np.testing.assert_array_equal(answer[OUTPUT], booster.inplace_predict(good))


def test_a_request_without_the_input_fails_alone(backend: Any) -> None:
    model = backend.load(config())
    missing, good = model.execute([{}, {"input__0": Tensor("input__0", random_rows(2))}])
    assert missing.error == "input__0 must be [n, 5], not None"
    assert good[OUTPUT].shape == (2,)


def test_shap_is_xgboosts_own_with_the_bias_last(backend: Any, booster: Any) -> None:
    rows = random_rows(30)
    (answer,) = ask(backend.load(config({OUTPUT: 1, SHAP: COLUMNS + 1})), rows)
    expected = booster.predict(xgboost.DMatrix(rows), pred_contribs=True)
    np.testing.assert_allclose(answer[SHAP], expected, atol=1e-6)
    margins = booster.inplace_predict(rows, predict_type="margin")
    np.testing.assert_allclose(answer[SHAP].sum(axis=1), margins, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 6])
def test_tables_explain_as_xgboost_does(backend: Any, depth: int) -> None:
    deep = train(max_depth=depth, min_child_weight=0)  # deeper than there are features: they recur
    deep.save_model(backend.repository / "1" / "xgboost.json")
    model = backend.load(config({OUTPUT: 1, SHAP: COLUMNS + 1}))
    rows = random_rows(300, seed=7)
    (answer,) = ask(model, rows)
    assert backend.explained_by_xgboost == []
    expected = deep.predict(xgboost.DMatrix(rows), pred_contribs=True)
    np.testing.assert_allclose(answer[SHAP], expected, atol=5e-6)


@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ({"booster": "dart"}, "weights of their own"),
        ({"max_depth": 12, "min_child_weight": 0, "tables": 1_000}, "need"),
        ({"base_score": 0.5, "min_split_loss": 1e9}, "depth 0"),
    ],
)
def test_what_has_no_tables_is_explained_by_xgboost(
    backend: Any, parameters: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = parameters.pop("tables", None)
    if limit is not None:
        monkeypatch.setattr(sys.modules["treeshap"], "MAX_TABLE_BYTES", limit)
    other = train(**parameters)
    other.save_model(backend.repository / "1" / "xgboost.json")
    model = backend.load(config({OUTPUT: 1, SHAP: COLUMNS + 1}))
    (reason,) = backend.explained_by_xgboost
    assert re.search(why, reason)
    rows = random_rows(10)
    (answer,) = ask(model, rows)
    expected = other.predict(xgboost.DMatrix(rows), pred_contribs=True)
    np.testing.assert_array_equal(answer[SHAP], expected)


def test_infinite_values_are_explained_too(backend: Any, booster: Any) -> None:
    rows = random_rows(4)
    rows[1, 0], rows[2, 0] = np.inf, -np.inf
    (answer,) = ask(backend.load(config({OUTPUT: 1, SHAP: COLUMNS + 1})), rows)
    margins = booster.inplace_predict(rows, predict_type="margin")
    np.testing.assert_allclose(answer[SHAP].sum(axis=1), margins, atol=1e-5)


def test_a_model_with_feature_names_is_explained(backend: Any) -> None:
    named = train()
    named.feature_names = [f"name_{i}" for i in range(COLUMNS)]
    named.save_model(backend.repository / "1" / "xgboost.json")
    rows = random_rows(3)
    (answer,) = ask(backend.load(config({OUTPUT: 1, SHAP: COLUMNS + 1})), rows)
    margins = named.inplace_predict(rows, predict_type="margin")
    np.testing.assert_allclose(answer[SHAP].sum(axis=1), margins, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "catboost"}, "model_type 'catboost'"),
        ({"model_type": None}, "model_type 'xgboost'"),  # the real backend's default
        ({"predict_proba": "True"}, "predict_proba must be true or false, not 'True'"),
        ({"output_class": "yes"}, "output_class must be true or false, not 'yes'"),
        ({"is_classifier": "TRUE"}, "is_classifier must be true or false, not 'TRUE'"),
        ({"output_class": None}, "output_class is required"),
        ({"threshold": None}, "threshold is required"),
        ({"threshold": "half"}, "threshold must be a number, not 'half'"),
        ({"cpu_nthread": "all"}, "cpu_nthread must be a number, not 'all'"),
        ({"columns": 6}, "the model has 5 features, the configuration 6"),
        ({"outputs": {OUTPUT: 3}}, "dims"),
        ({"outputs": {OUTPUT: 2}, "predict_proba": "false"}, "dims"),
        ({"outputs": {OUTPUT: 1, SHAP: COLUMNS}}, "treeshap_output must have dims"),
    ],
)
def test_what_the_real_backend_refuses_is_refused(
    backend: Any, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(TritonModelException, match=text.replace("[", r"\[")):
        backend.load(config(**changes))


def test_a_missing_file_is_refused(backend: Any) -> None:
    (backend.repository / "1" / "xgboost.json").unlink()
    with pytest.raises(xgboost.core.XGBoostError, match=r"xgboost\.json"):
        backend.load(config())


def test_a_model_with_several_outputs_is_refused(backend: Any) -> None:
    many = train(objective="multi:softprob", num_class=3)
    many.save_model(backend.repository / "1" / "xgboost.json")
    with pytest.raises(TritonModelException, match="one output only"):
        backend.load(config())


@pytest.mark.parametrize(("given", "threads"), [(None, "1"), ("1", "1"), ("2", "2")])
def test_threads_are_as_configured_and_one_by_default(
    backend: Any, given: str | None, threads: str
) -> None:
    model = backend.load(config(cpu_nthread=given))
    assert f'"nthread":"{threads}"' in model._booster.save_config()
