"""The ONNX Runtime stand-in: the graph's own shapes, and the real backend's refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.deploy.conftest import COLUMNS, Tensor, TritonModelException, random_rows

OUTPUT = "output__0"


def config(
    *,
    inputs: dict[str, int] | None = None,
    outputs: dict[str, int] | None = None,
    kind: str = "TYPE_FP32",
    **parameters: str,
) -> dict[str, Any]:
    def tensors(named: dict[str, int], kind: str = "TYPE_FP32") -> list[dict[str, Any]]:
        return [
            {"name": name, "data_type": kind, "dims": [str(width)]} for name, width in named.items()
        ]

    return {
        "max_batch_size": 1000,
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "input": tensors(inputs or {"input__0": COLUMNS}),
        "output": tensors(outputs or {OUTPUT: 1}, kind),
    }


def identity(shape: list[int | str]) -> Any:
    """Return a graph that answers its input."""
    names = ("input__0", OUTPUT)
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in names]
    node = helper.make_node("Identity", names[:1], names[1:])
    graph = helper.make_graph([node], "identity", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)


@pytest.fixture
def backend(open_backend: Callable[[str], Any], graph: Any) -> Any:
    opened = open_backend("onnxruntime")
    onnx.save(graph, opened.repository / "1" / "model.onnx")
    return opened


def ask(model: Any, *requests: Any) -> Any:
    return model.execute([{"input__0": Tensor("input__0", rows)} for rows in requests])


def test_the_graphs_shape_is_not_squeezed(backend: Any) -> None:
    rows = random_rows(7)
    (answer,) = ask(backend.load(config()), rows)
    assert answer[OUTPUT].shape == (7, 1)
    np.testing.assert_allclose(answer[OUTPUT], rows.sum(axis=1, keepdims=True), rtol=1e-5)


def test_requests_of_one_call_get_their_own_rows(backend: Any) -> None:
    parts = [np.nan_to_num(random_rows(n, seed=n)) for n in (1, 4, 9)]
    answers = ask(backend.load(config()), *parts)
    for part, answer in zip(parts, answers, strict=True):
        expected = part.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(answer[OUTPUT], expected, rtol=1e-5, atol=1e-6)


def test_a_bad_request_fails_alone(backend: Any) -> None:
    good = np.ones((2, COLUMNS), dtype=np.float32)
    first, bad, last = ask(backend.load(config()), good, random_rows(3, columns=4), good)
    assert "input__0" in bad.error
    for answer in (first, last):
        np.testing.assert_array_equal(answer[OUTPUT], [[COLUMNS], [COLUMNS]])


def test_thread_counts_and_execution_mode_are_as_configured(backend: Any) -> None:
    model = backend.load(
        config(intra_op_thread_count="1", inter_op_thread_count="2", execution_mode="1")
    )
    options = model._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 2)
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert backend.load(config())._session.get_session_options().execution_mode.name == (
        "ORT_SEQUENTIAL"
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"execution_mode": "2"}, "execution_mode is '2'"),
        ({"intra_op_thread_count": "many"}, "intra_op_thread_count is 'many'"),
        ({"inter_op_thread_count": "-1"}, "inter_op_thread_count is '-1'"),
        ({"inputs": {"rows": COLUMNS}}, "the graph's inputs are"),
        ({"outputs": {"scores": 1}}, "the graph has no outputs"),
        ({"inputs": {"input__0": 6}}, "'input__0': the model expects shape"),
        ({"outputs": {OUTPUT: 2}}, "'output__0': the model expects shape"),
        ({"kind": "TYPE_INT64"}, "unexpected datatype"),
    ],
)
def test_what_the_real_backend_refuses_is_refused(
    backend: Any, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(TritonModelException, match=text):
        backend.load(config(**changes))


def test_a_graph_with_a_fixed_number_of_rows_cannot_be_batched(backend: Any) -> None:
    onnx.save(identity([8, COLUMNS]), backend.repository / "1" / "model.onnx")
    with pytest.raises(TritonModelException, match="'input__0': the model expects shape"):
        backend.load(config(outputs={OUTPUT: COLUMNS}))


def test_an_open_width_is_allowed_in_an_input_but_not_in_an_output(backend: Any) -> None:
    onnx.save(identity(["n", "width"]), backend.repository / "1" / "model.onnx")
    with pytest.raises(TritonModelException, match="'output__0': the model expects shape"):
        backend.load(config(outputs={OUTPUT: COLUMNS}))
    rows = random_rows(3)
    (answer,) = ask(backend.load(config(outputs={OUTPUT: -1})), rows)
    np.testing.assert_array_equal(answer[OUTPUT], rows)
