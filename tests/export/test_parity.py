"""The proof's rows sit where exports break, and a wrong score is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.normalise import NormalisedModel, normalise, scores_of
from export.parity import boundary_rows, compare, compare_sums, parity_rows
from flagger.errors import PublishError
from flagger.features import FEATURE_NAMES


@pytest.fixture(scope="module")
def model(training_dir: Path) -> NormalisedModel:
    return normalise(training_dir / "model.json", FEATURE_NAMES)


def thresholds_of(model: NormalisedModel, column: int) -> np.ndarray[Any, Any]:
    trees = json.loads(model.text)["learner"]["gradient_booster"]["model"]["trees"]
    found = {
        np.float32(threshold)
        for tree in trees
        for threshold, split, left in zip(
            tree["split_conditions"], tree["split_indices"], tree["left_children"], strict=True
        )
        if left >= 0 and split == column
    }
    return np.array(sorted(found), dtype=np.float32)


def test_every_column_has_values_at_below_and_above_its_thresholds(model: NormalisedModel) -> None:
    rows = boundary_rows(model, 10_000)
    assert rows.shape == (10_000, len(FEATURE_NAMES))
    assert rows.dtype == np.float32
    thresholds = thresholds_of(model, column=0)
    assert len(thresholds) > 10
    for neighbour in (thresholds, np.nextafter(thresholds, -np.inf, dtype=np.float32)):
        assert np.isin(neighbour, rows[:, 0]).all()
    assert np.isin(np.nextafter(thresholds, np.inf, dtype=np.float32), rows[:, 0]).all()


def test_every_column_has_missing_unknown_extreme_and_denormal_values(
    model: NormalisedModel,
) -> None:
    rows = boundary_rows(model, 1_000)
    assert np.isnan(rows).any(axis=0).all()
    for value in (0.0, 1e30, -1e30, 1e-40):
        assert (rows == np.float32(value)).any(axis=0).all()
    assert np.isnan(rows[0]).all()


def test_the_rows_are_the_same_for_one_seed_and_others_for_another(model: NormalisedModel) -> None:
    np.testing.assert_array_equal(boundary_rows(model, 50), boundary_rows(model, 50))
    assert not np.array_equal(
        boundary_rows(model, 50), boundary_rows(model, 50, seed=8), equal_nan=True
    )


def test_real_rows_are_at_most_half(model: NormalisedModel) -> None:
    real = np.full((300, len(FEATURE_NAMES)), 123.5, dtype=np.float32)
    is_real = (parity_rows(model, 100, real) == 123.5).all(axis=1)
    assert is_real.sum() == 50
    assert len(parity_rows(model, 1_000, real)) == 1_000
    assert (parity_rows(model, 1_000, real) == 123.5).all(axis=1).sum() == 300


def test_the_rows_find_a_comparison_that_includes_the_threshold(model: NormalisedModel) -> None:
    """A reader that takes `<=` for `<` differs from the booster at thresholds alone."""
    document = json.loads(model.text)
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        tree["split_conditions"] = [
            float(np.nextafter(np.float32(value), np.float32(np.inf))) if left >= 0 else value
            for value, left in zip(tree["split_conditions"], tree["left_children"], strict=True)
        ]
    wrong = model.booster.copy()
    wrong.load_model(bytearray(json.dumps(document).encode()))
    rows = boundary_rows(model, 1_000)
    with pytest.raises(PublishError, match="does not answer as the trained booster"):
        compare("off by one", scores_of(model.booster, rows), scores_of(wrong, rows), rows)


def test_a_wrong_score_is_refused_with_the_worst_row_and_both_values() -> None:
    expected = np.array([0.25, 0.5, 0.75], dtype=np.float32)
    answered = expected + np.array([0.0, 0.125, 2e-5], dtype=np.float32)
    rows = np.array([[1.0], [2.5], [3.0]], dtype=np.float32)
    with pytest.raises(PublishError) as error:
        compare("fraud_onnx", expected, answered, rows)
    for fact in ("fraud_onnx", "2 of 3 rows", "row 1", "0.50000000", "0.62500000", "[2.5]"):
        assert fact in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_a_number_is_refused(bad: float) -> None:
    expected = np.array([0.25, 0.5], dtype=np.float32)
    answered = np.array([0.25, bad], dtype=np.float32)
    rows = np.zeros((2, 1), dtype=np.float32)
    for scores in ((expected, answered), (answered, expected)):
        with pytest.raises(PublishError, match="row 1"):
            compare("x", *scores, rows)
    with pytest.raises(PublishError, match="row 1"):
        compare_sums("x", answered, np.stack([expected, rows[:, 0]], axis=1))


def test_too_few_scores_are_refused() -> None:
    scores = np.zeros(2, dtype=np.float32)
    with pytest.raises(PublishError, match="shape"):
        compare("x", scores, scores[:1], np.zeros((2, 1), dtype=np.float32))


def test_agreement_is_reported() -> None:
    scores = np.array([0.25, 0.5], dtype=np.float32)
    report = compare("x", scores, scores + np.float32(2**-20), np.zeros((2, 1), dtype=np.float32))
    assert report["rows"] == 2
    assert 0 < report["max_abs_difference"] < 1e-6
    assert report["tolerance"] == 1e-5
