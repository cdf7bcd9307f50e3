"""From a trained booster to the XGBoost JSON that every FIL backend reads alike.

XGBoost 3.1 and later write `base_score` as a vector and a `cats` block: Triton containers up to
25.12 refuse such a file, and older XGBoost versions read it without an error and answer wrong.
The *normalised* file has a scalar `base_score`, no `cats`, and only the trees up to the best
iteration, because every backend but XGBoost's own scikit-learn wrapper evaluates all trees that
it finds. What cannot be served faithfully is refused here, before anything is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from flagger.errors import PublishError

__all__ = ["NormalisedModel", "margins_of", "normalise", "scores_of"]


@dataclass(frozen=True)
class NormalisedModel:
    """A booster that is cut at its best iteration, and the JSON text of it.

    Attributes:
        booster: The trained booster, cut: the reference of the parity proof.
        text: The normalised JSON, for `xgboost.json`.
        n_features: Columns that it takes.
        n_trees: Trees that it evaluates.
    """

    booster: Any
    text: str
    n_features: int
    n_trees: int


def normalise(model_file: Path, feature_names: Sequence[str]) -> NormalisedModel:
    """Read a trained model and normalise it.

    Args:
        model_file: JSON or UBJ file of `Booster.save_model`.
        feature_names: Names of the columns that the doors compute, in order.

    Raises:
        PublishError: The model cannot be read, or cannot be served as it was trained.
    """
    booster = xgboost.Booster()
    try:
        booster.load_model(model_file)
        document = _document(booster)
        written = _document_version(model_file) or document["version"]
    except (xgboost.core.XGBoostError, OSError, ValueError, KeyError) as error:
        raise PublishError(
            f"{model_file} cannot be read as an XGBoost model: {str(error).splitlines()[0]}. "
            f"Run `flagger train` again."
        ) from error
    running = [int(part) for part in xgboost.__version__.split(".")[:2]]
    if written[:2] > running:
        raise PublishError(
            f"{model_file} was written by XGBoost {'.'.join(map(str, written))}, but "
            f"{xgboost.__version__} is installed: an older release may read it wrong without an "
            f"error. Export with the release that trained it."
        )
    if problem := _problem(document["learner"], feature_names):
        raise PublishError(f"{model_file} cannot be served: {problem}.")
    booster = _cut(booster)
    document = _document(booster)
    learner = document["learner"]
    # One output: the vector string "[1.9E-1]" holds one number.
    param = learner["learner_model_param"]
    param["base_score"] = param["base_score"].strip("[]")
    learner["gradient_booster"]["model"].pop("cats", None)
    learner["attributes"] = {}  # a best iteration left here could cut the trees a second time
    return NormalisedModel(
        booster=booster,
        text=json.dumps(document, separators=(",", ":")),
        n_features=len(feature_names),
        n_trees=int(learner["gradient_booster"]["model"]["gbtree_model_param"]["num_trees"]),
    )


def scores_of(booster: Any, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the booster's own fraud probabilities of float32 [n, F] rows, float32 [n]."""
    scores: npt.NDArray[np.float32] = booster.predict(
        xgboost.DMatrix(rows, missing=np.nan, feature_names=booster.feature_names)
    )
    return scores


def margins_of(booster: Any, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the raw margins (log-odds) of float32 [n, F] rows, float32 [n]."""
    margins: npt.NDArray[np.float32] = booster.predict(
        xgboost.DMatrix(rows, missing=np.nan, feature_names=booster.feature_names),
        output_margin=True,
    )
    return margins


def _document(booster: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bytes(booster.save_raw("json")))
    return document


def _document_version(model_file: Path) -> list[int] | None:
    """Return the version that wrote a JSON file; None for the binary form."""
    if model_file.suffix != ".json":
        return None
    version: list[int] = json.loads(model_file.read_text(encoding="utf-8"))["version"]
    return version


def _cut(booster: Any) -> Any:
    """Drop the trees after the best iteration of early stopping."""
    best = booster.attr("best_iteration")
    if best is None or int(best) + 1 >= booster.num_boosted_rounds():
        return booster
    return booster[: int(best) + 1]


def _problem(learner: dict[str, Any], feature_names: Sequence[str]) -> str | None:
    """Return why the backends could not answer as this model does, or None."""
    kind = learner["gradient_booster"]["name"]
    if kind != "gbtree":
        # DART weighs its trees, which neither FIL's reader nor the ONNX converter carries over.
        return f"its booster is {kind!r}; train with booster='gbtree'"
    objective = learner["objective"]["name"]
    if objective != "binary:logistic":
        return f"its objective is {objective!r}; train with objective='binary:logistic'"
    param = learner["learner_model_param"]
    if int(param.get("num_target", 1)) > 1 or int(param["num_class"]) > 1:
        return "it has several outputs; the doors read one probability of fraud"
    trees = learner["gradient_booster"]["model"]["trees"]
    if any(int(tree["tree_param"]["size_leaf_vector"]) > 1 for tree in trees):
        return "its leaves are vectors; train with multi_strategy='one_output_per_tree'"
    if any(tree["categories_nodes"] for tree in trees):
        return (
            "it has categorical splits, which older FIL backends and the ONNX converter treat "
            "differently; train with the category codes as plain numbers (no enable_categorical)"
        )
    missing = _missing_value(learner["attributes"])
    if not math.isnan(missing):
        return (
            f"it was trained with missing={missing:g}, but only NaN is missing in Triton; train "
            f"with missing=NaN"
        )
    if int(param["num_feature"]) != len(feature_names):
        return (
            f"it takes {param['num_feature']} features, the contract has {len(feature_names)}; "
            f"train again with this release"
        )
    names = learner["feature_names"]
    if names and names != list(feature_names):
        wrong = next(i for i, name in enumerate(names) if name != feature_names[i])
        return (
            f"its column {wrong} is {names[wrong]!r}, the contract's is {feature_names[wrong]!r}; "
            f"train again with this release"
        )
    return None


def _missing_value(attributes: dict[str, str]) -> float:
    """Return the `missing` that a trainer recorded: as an attribute, or by scikit-learn's API."""
    recorded = attributes.get("missing")
    if recorded is None and "scikit_learn" in attributes:
        recorded = json.loads(attributes["scikit_learn"]).get("missing")
    return math.nan if recorded is None else float(recorded)
