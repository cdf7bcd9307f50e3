"""Tiny models, and the stand-in backends loaded without a server around them."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import xgboost
from onnx import TensorProto, helper

import deploy.local

COLUMNS = 5
BACKENDS = Path(deploy.local.__file__).parent / "backends"
FIL_PARAMETERS = {
    "model_type": "xgboost_json",
    "predict_proba": "true",
    "output_class": "true",
    "is_classifier": "true",
    "threshold": "0.5",
    "cpu_nthread": "1",
}
Rows = npt.NDArray[np.float32]
Load = Callable[..., Any]
WriteEntry = Callable[..., Path]


class TritonModelException(Exception):
    """Triton's error for a model that cannot be loaded."""


@dataclass
class Tensor:
    name: str
    array: npt.NDArray[Any]

    def as_numpy(self) -> npt.NDArray[Any]:
        return self.array


@dataclass
class Response:
    tensors: list[Tensor] = field(default_factory=list)
    error: str | None = None

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        assert self.error is None
        return next(tensor.array for tensor in self.tensors if tensor.name == name)


def triton_utilities(warnings: list[str]) -> types.ModuleType:
    """Return a module with the part of Triton's Python API that the stand-ins use."""
    module = types.ModuleType("triton_python_backend_utils")
    parts: dict[str, Any] = {
        "TritonModelException": TritonModelException,
        "Tensor": Tensor,
        "TritonError": str,
        "InferenceResponse": lambda tensors=(), error=None: Response(list(tensors), error),
        "get_input_tensor_by_name": lambda request, name: request.get(name),
        "Logger": types.SimpleNamespace(log_warn=warnings.append),
    }
    vars(module).update(parts)
    return module


@dataclass
class Backend:
    """A stand-in without a server: `load` a configuration, `execute` requests."""

    module: Any
    warnings: list[str]
    repository: Path

    @property
    def explained_by_xgboost(self) -> list[str]:
        """What was logged of a model that has no tables."""
        return [text for text in self.warnings if "more slowly" in text]

    def load(self, config: dict[str, Any]) -> Any:
        model = self.module.TritonPythonModel()
        arguments = {
            "model_config": json.dumps(config),
            "model_repository": str(self.repository),
            "model_version": "1",
        }
        model.initialize(arguments)
        return model


@pytest.fixture
def open_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Backend]:
    """Return a function that loads a stand-in by name; its models go in `tmp_path / "1"`."""
    warnings: list[str] = []
    (tmp_path / "1").mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("FLAGGER_TRITON_SITE_PACKAGES", str(tmp_path / "site-packages"))
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton_utilities(warnings))

    def load(name: str) -> Backend:
        spec = importlib.util.spec_from_file_location(name, BACKENDS / name / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return Backend(module, warnings, tmp_path)

    return load


def random_rows(n: int, seed: int = 0, columns: int = COLUMNS) -> Rows:
    random = np.random.default_rng(seed)
    rows: Rows = random.normal(size=(n, columns)).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    return rows


def train(**parameters: Any) -> Any:
    rows = random_rows(2_000, seed=1)
    labels = (np.nansum(rows, axis=1) > 0.5).astype(np.float32)
    fixed = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    return xgboost.train(fixed | parameters, xgboost.DMatrix(rows, labels), 10)


@pytest.fixture(scope="session")
def booster() -> Any:
    return train()


@pytest.fixture(scope="session")
def graph() -> Any:
    """A graph of one layer, [-1, 5] -> [-1, 1], that answers the sum of a row."""
    weights = np.ones((COLUMNS, 1), dtype=np.float32)
    made = helper.make_graph(
        [helper.make_node("MatMul", ["input__0", "weights"], ["output__0"])],
        "sum",
        [helper.make_tensor_value_info("input__0", TensorProto.FLOAT, ["n", COLUMNS])],
        [helper.make_tensor_value_info("output__0", TensorProto.FLOAT, ["n", 1])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    opsets = [helper.make_opsetid("", 15)]
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def config_text(name: str, backend: str, outputs: dict[str, int], parameters: Any) -> str:
    """Return a config.pbtxt with dynamic batching."""
    written = "\n".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    )
    answers = ", ".join(
        f'{{ name: "{output}" data_type: TYPE_FP32 dims: [ {width} ] }}'
        for output, width in outputs.items()
    )
    return (
        f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 1000\n'
        f'input [ {{ name: "input__0" data_type: TYPE_FP32 dims: [ {COLUMNS} ] }} ]\n'
        f"output [ {answers} ]\n{written}\ndynamic_batching {{ }}\n"
        "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    )


@pytest.fixture(scope="session")
def write_fil() -> WriteEntry:
    """Write a FIL entry: `write_fil(repository, name, booster, outputs, **parameters)`."""

    def write(
        repository: Path, name: str, booster: Any, outputs: dict[str, int], **changes: str
    ) -> Path:
        entry = repository / name
        (entry / "1").mkdir(parents=True)
        booster.save_model(entry / "1" / "xgboost.json")
        text = config_text(name, "fil", outputs, FIL_PARAMETERS | changes)
        (entry / "config.pbtxt").write_text(text)
        return entry

    return write
