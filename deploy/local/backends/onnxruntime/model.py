"""Stand-in for Triton's C++ ONNX Runtime backend, where only the Python backend is at hand.

Same file, same parameters, same names and shapes as the graph has them: nothing is squeezed. In the
NGC image the real backend takes over.
"""

import json
import os
import sys

sys.path.insert(0, os.environ["FLAGGER_TRITON_SITE_PACKAGES"])

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

TYPES = {"TYPE_FP32": "tensor(float)", "TYPE_FP64": "tensor(double)", "TYPE_INT64": "tensor(int64)"}
"""Tensor types that this stand-in knows, as ONNX Runtime names them."""


def _whole_number(parameters, name, allowed=None):
    text = parameters.get(name, "0")
    if not text.isdecimal() or (allowed and int(text) not in allowed):
        raise pb_utils.TritonModelException(
            f"{name} is {text!r}; it must be {allowed or '0, 1 ..'}"
        )
    return int(text)


def _require_same(tensor, found, batched, exact):
    """Refuse a tensor whose type or shape is not the graph's, as the real backend does.

    The graph's open dimensions are -1. An output must agree exactly; an input may fill them.
    """
    name = tensor["name"]
    dims = tensor.get("reshape", {}).get("shape") or tensor["dims"]
    dims = [-1] * batched + [int(d) for d in dims]
    shape = [d if isinstance(d, int) else -1 for d in found.shape]
    if TYPES.get(tensor["data_type"]) != found.type:
        raise pb_utils.TritonModelException(
            f"unexpected datatype {found.type} for {name!r}, expecting {tensor['data_type']}"
        )
    fits = len(shape) == len(dims) and all(
        has == wants or (has == -1 and not exact) for has, wants in zip(shape, dims)
    )
    if not fits or (batched and shape[0] != -1):
        raise pb_utils.TritonModelException(
            f"tensor {name!r}: the model expects shape {shape}, the configuration says {dims}"
        )


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args):
        """Read configuration and graph; an exception here is a failed load."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = _whole_number(parameters, "intra_op_thread_count")
        options.inter_op_num_threads = _whole_number(parameters, "inter_op_thread_count")
        if _whole_number(parameters, "execution_mode", allowed=(0, 1)):
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        name = config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], args["model_version"], name)
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._check(config)

    def _check(self, config):
        inputs = {tensor.name: tensor for tensor in self._session.get_inputs()}
        outputs = {tensor.name: tensor for tensor in self._session.get_outputs()}
        if set(self._inputs) != set(inputs):
            raise pb_utils.TritonModelException(
                f"the graph's inputs are {sorted(inputs)}, the configuration's {self._inputs}"
            )
        if missing := [name for name in self._outputs if name not in outputs]:
            raise pb_utils.TritonModelException(
                f"the graph has no outputs {missing}; it has {sorted(outputs)}"
            )
        batched = int(config["max_batch_size"]) > 0
        for tensor in config["input"]:
            _require_same(tensor, inputs[tensor["name"]], batched, exact=False)
        for tensor in config["output"]:
            _require_same(tensor, outputs[tensor["name"]], batched, exact=True)

    def execute(self, requests):
        """Run the requests of a batch in one call, or one by one where they do not fit together."""
        feeds = [self._feed(request) for request in requests]
        try:
            together = {n: np.concatenate([feed[n] for feed in feeds]) for n in self._inputs}
            results = self._session.run(self._outputs, together)
        except Exception:  # one of them does not fit: each gets its own answer or error
            return [self._alone(feed) for feed in feeds]
        answers, start = [], 0
        for feed in feeds:
            end = start + len(feed[self._inputs[0]])
            answers.append(self._response([result[start:end] for result in results]))
            start = end
        return answers

    def _feed(self, request):
        return {n: pb_utils.get_input_tensor_by_name(request, n).as_numpy() for n in self._inputs}

    def _alone(self, feed):
        try:
            return self._response(self._session.run(self._outputs, feed))
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))

    def _response(self, results):
        tensors = [pb_utils.Tensor(n, r) for n, r in zip(self._outputs, results)]
        return pb_utils.InferenceResponse(tensors)
