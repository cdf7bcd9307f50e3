"""The ONNX form of the model: the same input and output as the FIL entry, nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import xgboost
from onnx import helper
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from export.normalise import NormalisedModel
from flagger.errors import PublishError
from flagger.triton_tensors import INPUT, OUTPUT

__all__ = ["IR_VERSION", "OPSET", "OnnxScorer", "to_onnx"]

OPSET = 15
IR_VERSION = 8
"""Old enough for the ONNX Runtime of every container from 24.03 on."""


def to_onnx(model: NormalisedModel) -> bytes:
    """Return the serialised graph: input__0 float [n, F] -> output__0 float [n, 2].

    Of the converter's two outputs the label goes and the probabilities of both classes stay, fraud
    in the second column, so that both entries of the repository answer alike.

    Raises:
        PublishError: The converter does not know something in this model.
    """
    booster = xgboost.Booster()
    booster.load_model(bytearray(_anonymous(model.text)))
    input_type = [(INPUT, FloatTensorType([None, model.n_features]))]
    try:
        converted = convert_xgboost(booster, initial_types=input_type, target_opset=OPSET)
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise PublishError(f"The model cannot be converted to ONNX: {error}") from error
    trees = [node for node in converted.graph.node if node.op_type == "TreeEnsembleClassifier"]
    if len(converted.graph.node) != 1 or len(trees) != 1:
        found = [node.op_type for node in converted.graph.node]
        raise PublishError(
            f"The ONNX converter made {found} where one TreeEnsembleClassifier was expected; "
            f"use the onnxmltools release in uv.lock."
        )
    graph = _probabilities(trees[0], model.n_features)
    onnx.checker.check_model(graph)
    serialised: bytes = graph.SerializeToString()
    return serialised


class OnnxScorer:
    """Scores rows with ONNX Runtime in this process, one thread, as Triton's entry does.

    Args:
        graph: A serialised ONNX model with our input and output.
    """

    def __init__(self, graph: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the scores of float32 [n, F] rows, float32 [n]."""
        scores: npt.NDArray[np.float32] = self._session.run([OUTPUT], {INPUT: rows})[0]
        return np.ascontiguousarray(scores[:, 1])


def _anonymous(text: str) -> bytes:
    """Drop the column names: the converter wants f0, f1, ... and reads nothing else from them."""
    document = json.loads(text)
    document["learner"]["feature_names"] = []
    document["learner"]["feature_types"] = []
    return json.dumps(document).encode()


def _probabilities(trees: Any, n_features: int) -> Any:
    """Return a model of the tree node alone, its probabilities as our output."""
    trees.output[1] = OUTPUT
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [trees],
        "fraud",
        [helper.make_tensor_value_info(INPUT, float32, [None, n_features])],
        [helper.make_tensor_value_info(OUTPUT, float32, [None, 2])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fraud-flagger"
    )
