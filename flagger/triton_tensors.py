"""Rows as Triton's input tensor, and its answers as our arrays.

Shapes are checked before the call, because the client library reports a wrong rank as an index
error. Answers of shape [n], [n, 1] and [n, 2] are all read as n probabilities of fraud, which is
the last column. Contributions are TreeSHAP values in margin space (log-odds), one per feature and
the bias last: a row's sum is the raw margin, whose sigmoid is the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton

from flagger.errors import ModelRefusedError
from flagger.triton_errors import ModelName

__all__ = [
    "CONTRIBUTIONS",
    "INPUT",
    "OUTPUT",
    "Read",
    "explanation_outputs",
    "read_contributions",
    "read_scores",
    "request_of",
]

INPUT = "input__0"
OUTPUT = "output__0"
CONTRIBUTIONS = "treeshap_output"
"""The FIL backend's name for the TreeSHAP values."""

Read = Callable[[Any, int, ModelName], npt.NDArray[np.float32]]
"""Takes our array out of the client library's answer for so many rows; raises ModelRefusedError."""


def request_of(rows: npt.NDArray[np.float32]) -> list[Any]:
    """Return the client library's input of float32 [n, F] rows; ValueError if they are not."""
    if rows.ndim != 2 or rows.dtype != np.float32:
        raise ValueError(f"rows must be float32 [n, F], not {rows.dtype} {rows.shape}")
    tensor = triton.InferInput(INPUT, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return [tensor]


def explanation_outputs() -> list[Any]:
    """Return what to ask for where contributions are wanted instead of scores."""
    return [triton.InferRequestedOutput(CONTRIBUTIONS)]


def _output(result: Any, name: str) -> npt.NDArray[np.float32] | None:
    try:
        output: npt.NDArray[np.float32] | None = result.as_numpy(name)
    except ValueError:  # its bytes are not what its type and shape say
        return None
    return output


def _form(output: npt.NDArray[Any] | None) -> str:
    return "nothing readable" if output is None else f"{output.dtype} {list(output.shape)}"


def read_scores(result: Any, n: int, model: ModelName) -> npt.NDArray[np.float32]:
    """Return n scores, float32 [n]; raises ModelRefusedError."""
    output = _output(result, OUTPUT)
    if output is None or output.dtype != np.float32 or output.size not in (n, 2 * n):
        raise ModelRefusedError(
            f"{model.name} version {model.version} answered {OUTPUT} as {_form(output)} for {n} "
            f"rows; export the model again."
        )
    scores: npt.NDArray[np.float32] = np.ascontiguousarray(output.reshape(n, -1)[:, -1])
    if not ((scores >= 0.0) & (scores <= 1.0)).all():  # NaN is neither
        raise ModelRefusedError(
            f"{model.name} version {model.version} answered scores outside 0 to 1: not a "
            f"probability of fraud. Export the model again."
        )
    return scores


def read_contributions(result: Any, n: int, model: ModelName) -> npt.NDArray[np.float32]:
    """Return the contributions to n scores, float32 [n, F + 1]; raises ModelRefusedError."""
    output = _output(result, CONTRIBUTIONS)
    if (
        output is None
        or output.dtype != np.float32
        or output.size == 0
        or output.size % n
        or not np.isfinite(output).all()
    ):
        raise ModelRefusedError(
            f"{model.name} version {model.version} answered {CONTRIBUTIONS} as {_form(output)} for "
            f"{n} rows, or numbers that are not finite; export the model again."
        )
    return output.reshape(n, -1)
