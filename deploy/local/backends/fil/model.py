"""Stand-in for Triton's C++ FIL backend, where only the Python backend is at hand.

It reads the same files and parameters, refuses what the real one refuses, and answers in the same
shapes: see the backend's docs/model_config.md. In the NGC image the real backend takes over.
One thing is kinder here, and said in the log: `predict_proba` with dims [1], which the real one
answers rightly from 25.09 on only.
"""

import json
import os
import sys

sys.path.insert(0, os.environ["FLAGGER_TRITON_SITE_PACKAGES"])
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import triton_python_backend_utils as pb_utils
import xgboost as xgb
from treeshap import TreeShap, read_trees

INPUT, OUTPUT, SHAP_OUTPUT = "input__0", "output__0", "treeshap_output"
FILES = {"xgboost_json": "xgboost.json"}
"""Model types that this stand-in reads; the real backend has more."""
_LARGEST = np.finfo(np.float32).max


def _flag(parameters, name, default=None):
    """Read a boolean parameter; the real backend takes lower-case words only."""
    if name not in parameters:
        if default is None:
            raise pb_utils.TritonModelException(f"the parameter {name} is required")
        return default
    text = parameters[name]
    if text not in ("true", "false"):
        raise pb_utils.TritonModelException(f"{name} must be true or false, not {text!r}")
    return text == "true"


def _number(parameters, name, kind, default=None):
    """Read a number; without a default it is required."""
    if name not in parameters and default is None:
        raise pb_utils.TritonModelException(f"the parameter {name} is required")
    try:
        return kind(parameters.get(name, default))
    except ValueError:
        text = parameters[name]
        raise pb_utils.TritonModelException(f"{name} must be a number, not {text!r}") from None


class TritonPythonModel:
    """One instance of one model version."""

    def initialize(self, args):
        """Read configuration and model; an exception here is a failed load."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        kind = parameters.get("model_type", "xgboost")
        if kind not in FILES:
            raise pb_utils.TritonModelException(
                f"model_type {kind!r} is not known to this stand-in; it reads {sorted(FILES)}"
            )
        # Releases up to 25.08 need output_class; from 25.09 on it is the older name of
        # is_classifier, and still the one that counts.
        self._classifies = _flag(parameters, "output_class")
        _flag(parameters, "is_classifier", self._classifies)
        self._threshold = _number(parameters, "threshold", float) if self._classifies else 0.5
        self._proba = _flag(parameters, "predict_proba", False)
        threads = _number(parameters, "cpu_nthread", int, "1")
        outputs = {o["name"]: [int(d) for d in o["dims"]] for o in config["output"]}
        self._columns = int(config["input"][0]["dims"][-1])
        self._width = outputs[OUTPUT][-1]
        self._explains = SHAP_OUTPUT in outputs
        name = config.get("default_model_filename") or FILES[kind]
        path = os.path.join(args["model_repository"], args["model_version"], name)
        self._booster = xgb.Booster(model_file=path)
        self._booster.set_param({"nthread": threads if threads > 0 else os.cpu_count()})
        self._check(outputs)
        self._tables = self._read_tables(path) if self._explains else None

    def _check(self, outputs):
        """Refuse a model that does not fit its configuration; it also scores its first row."""
        found = self._booster.num_features()
        if found not in (0, self._columns):
            raise pb_utils.TritonModelException(
                f"the model has {found} features, the configuration {self._columns}"
            )
        row = np.zeros((1, self._columns), dtype=np.float32)
        if self._booster.inplace_predict(row).ndim != 1:
            raise pb_utils.TritonModelException("this stand-in reads models with one output only")
        allowed = (1, 2) if self._proba and self._classifies else (1,)
        if self._width not in allowed:
            raise pb_utils.TritonModelException(f"{OUTPUT} has dims [{self._width}], not {allowed}")
        if self._explains and outputs[SHAP_OUTPUT] != [self._columns + 1]:
            raise pb_utils.TritonModelException(
                f"{SHAP_OUTPUT} must have dims [{self._columns + 1}], the bias last"
            )
        if self._proba and self._width == 1:
            pb_utils.Logger.log_warn(
                "predict_proba with dims [1]: the real FIL backend up to 25.08 answers other "
                "numbers; dims [2] is right in all releases"
            )

    def _read_tables(self, path):
        """Return the tables that explain the model; None: xgboost's own recursion must."""
        trees, why_not = read_trees(path)
        if trees is None:
            pb_utils.Logger.log_warn(f"explanations come from xgboost, more slowly: {why_not}")
            return None
        bias = self._explain_by_xgboost(np.zeros((1, self._columns), dtype=np.float32))[0, -1]
        return TreeShap(trees, self._columns, bias)

    def execute(self, requests):
        """Score all requests of a batch in one call; a bad one gets its own error."""
        answers = [None] * len(requests)
        good, rows = [], []
        for i, request in enumerate(requests):
            tensor = pb_utils.get_input_tensor_by_name(request, INPUT)
            values = None if tensor is None else tensor.as_numpy()
            if values is None or values.ndim != 2 or values.shape[1] != self._columns:
                shape = None if values is None else values.shape
                error = pb_utils.TritonError(f"{INPUT} must be [n, {self._columns}], not {shape}")
                answers[i] = pb_utils.InferenceResponse(error=error)
            else:
                good.append(i)
                rows.append(values)
        if good:
            together = rows[0] if len(rows) == 1 else np.concatenate(rows)
            scores = self._answer(self._booster.inplace_predict(together, missing=np.nan))
            shap = self._explain(together) if self._explains else None
            start = 0
            for i, part in zip(good, rows):
                end = start + len(part)
                tensors = [pb_utils.Tensor(OUTPUT, scores[start:end])]
                if shap is not None:
                    tensors.append(pb_utils.Tensor(SHAP_OUTPUT, shap[start:end]))
                answers[i] = pb_utils.InferenceResponse(tensors)
                start = end
        return answers

    def _answer(self, scores):
        """Shape the positive class's probability as the real backend does: [n] for dims [1]."""
        scores = scores.astype(np.float32, copy=False)
        if self._proba:
            return scores if self._width == 1 else np.stack([1 - scores, scores], axis=1)
        return (scores > self._threshold).astype(np.float32) if self._classifies else scores

    def _explain(self, rows):
        """TreeSHAP in margin space, the bias last."""
        # DMatrix refuses infinities, one such row would fail all requests of the batch; the
        # largest number takes the same branches.
        finite = np.nan_to_num(rows, nan=np.nan, posinf=_LARGEST, neginf=-_LARGEST)
        return self._tables.explain(finite) if self._tables else self._explain_by_xgboost(finite)

    def _explain_by_xgboost(self, rows):
        matrix = xgb.DMatrix(rows, missing=np.nan)
        # Requests have columns, not names; a model may have been trained with names.
        contributions = self._booster.predict(matrix, pred_contribs=True, validate_features=False)
        return contributions.astype(np.float32)
