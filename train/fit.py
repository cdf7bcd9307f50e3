"""The model: gradient-boosted trees, stopped early on later days."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

__all__ = ["Hyperparameters", "fit_booster", "gain_by_column", "predict"]


@dataclass(frozen=True)
class Hyperparameters:
    """Settings of the trees, chosen by validation on the public and on simulated data.

    Fraud is not given more weight (`scale_pos_weight`): a hundredfold weight gains no average
    precision and raises the calibration error from 0.1 % to 13 %, so scores would be no
    probabilities. Columns have no names in the model, as ONNX wants it; the contract has them.

    Attributes:
        max_depth: Depth of a tree.
        learning_rate: Weight of each tree.
        min_child_weight: Least sum of second derivatives in a leaf: about p(1 - p) a row.
        subsample: Share of the rows that each tree sees.
        colsample_bytree: Share of the columns that each tree sees.
        reg_lambda: L2 penalty on leaf values.
        max_trees: Most trees; serving time grows with them.
        patience_trees: Stop after so many trees without a better validation.
    """

    max_depth: int = 6
    learning_rate: float = 0.05
    min_child_weight: float = 1.0
    subsample: float = 0.8
    colsample_bytree: float = 0.8
    reg_lambda: float = 1.0
    max_trees: int = 400
    patience_trees: int = 40


def fit_booster(
    fit: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
    hyperparameters: Hyperparameters,
    seed: int,
) -> xgb.Booster:
    """Return the booster, cut behind its best tree by average precision on the validation.

    Args:
        fit: Rows (float32 [n, F]) and outcomes (bool [n]) to learn from.
        validation: The same of later days, for early stopping.
        hyperparameters: Settings of the trees.
        seed: Seed of row and column sampling; the same seed gives the same trees.
    """
    parameters: dict[str, Any] = asdict(hyperparameters)
    trees, patience = parameters.pop("max_trees"), parameters.pop("patience_trees")
    threads = min(2, os.cpu_count() or 1)
    learned = xgb.QuantileDMatrix(*fit, max_bin=256, nthread=threads)
    judged = xgb.QuantileDMatrix(*validation, ref=learned, max_bin=256, nthread=threads)
    booster = xgb.train(
        parameters
        | {
            "objective": "binary:logistic",
            "eval_metric": "aucpr",
            "tree_method": "hist",
            "max_bin": 256,
            "nthread": threads,
            "seed": seed,
        },
        learned,
        num_boost_round=trees,
        evals=[(judged, "validation")],
        early_stopping_rounds=patience,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1]


def predict(booster: xgb.Booster, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities of fraud, float32 [n]."""
    if len(rows) == 0:
        return np.empty(0, dtype=np.float32)
    scores: npt.NDArray[np.float32] = booster.inplace_predict(rows)
    return scores.astype(np.float32, copy=False)


def gain_by_column(booster: xgb.Booster, columns: int) -> npt.NDArray[np.float64]:
    """Return each column's share of the trees' total gain, float64 [columns]."""
    gains = np.zeros(columns)
    for name, gain in booster.get_score(importance_type="total_gain").items():
        gains[int(name.removeprefix("f"))] = gain
    shares: npt.NDArray[np.float64] = gains / max(gains.sum(), 1e-300)
    return shares
