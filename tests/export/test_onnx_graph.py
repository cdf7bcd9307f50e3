"""The ONNX graph has our names and shapes, is old enough, and answers as the booster does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.normalise import NormalisedModel, normalise, scores_of
from export.onnx_graph import OnnxScorer, to_onnx
from export.parity import boundary_rows
from flagger.features import FEATURE_NAMES


@pytest.fixture(scope="module")
def model(training_dir: Path) -> NormalisedModel:
    return normalise(training_dir / "model.json", FEATURE_NAMES)


def dims(tensor: Any) -> list[int | str]:
    return [dim.dim_value or dim.dim_param for dim in tensor.type.tensor_type.shape.dim]


def test_the_graph_is_float_rows_in_and_both_probabilities_out(model: NormalisedModel) -> None:
    graph = onnx.load_from_string(to_onnx(model))
    (tensor,), (answer,) = graph.graph.input, graph.graph.output
    assert (tensor.name, dims(tensor)) == ("input__0", ["", len(FEATURE_NAMES)])
    assert (answer.name, dims(answer)) == ("output__0", ["", 2])
    assert [node.op_type for node in graph.graph.node] == ["TreeEnsembleClassifier"]


def test_the_graph_is_old_enough_for_every_container(model: NormalisedModel) -> None:
    graph = onnx.load_from_string(to_onnx(model))
    assert graph.ir_version == 8
    assert {(o.domain, o.version) for o in graph.opset_import} == {("", 15), ("ai.onnx.ml", 1)}


@pytest.mark.parametrize("n_rows", [1, 2, 5_000])
def test_onnx_runtime_agrees_with_the_booster(model: NormalisedModel, n_rows: int) -> None:
    rows = boundary_rows(model, n_rows)
    scores = OnnxScorer(to_onnx(model))(rows)
    assert scores.shape == (n_rows,)
    np.testing.assert_allclose(scores, scores_of(model.booster, rows), rtol=0, atol=3e-6)


def test_an_early_stopped_model_agrees(early_stopped: Any, tmp_path: Path) -> None:
    early_stopped.save_model(tmp_path / "model.json")
    model = normalise(tmp_path / "model.json", FEATURE_NAMES)
    rows = boundary_rows(model, 5_000)
    np.testing.assert_allclose(
        OnnxScorer(to_onnx(model))(rows), scores_of(model.booster, rows), rtol=0, atol=3e-6
    )
