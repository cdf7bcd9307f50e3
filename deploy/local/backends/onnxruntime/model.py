"""Stand-in for Triton's C++ ONNX Runtime backend, where only the Python backend is at hand.

Same file, same parameters, same names and shapes as the graph has them. In the NGC image the real
backend takes over.
"""

import json
import os
import sys

sys.path.insert(0, os.environ["FLAGGER_TRITON_SITE_PACKAGES"])

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args):
        """Read configuration and graph; an exception here is a failed load."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", "0"))
        options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", "0"))
        if parameters.get("execution_mode", "0") == "1":
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        name = config.get("default_model_filename") or "model.onnx"
        path = os.path.join(args["model_repository"], args["model_version"], name)
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        known = {tensor.name for tensor in self._session.get_inputs()}
        known |= {tensor.name for tensor in self._session.get_outputs()}
        if missing := [n for n in (*self._inputs, *self._outputs) if n not in known]:
            raise pb_utils.TritonModelException(f"the graph has no tensors named {missing}")

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
