"""The model: gradient-boosted trees, stopped early on later days."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost as xgb

from flagger.errors import ConfigurationError
from flagger.features import CATALOGUE, Feature

__all__ = [
    "MAX_BINS",
    "Hyperparameters",
    "Prepared",
    "boost",
    "booster_parameters",
    "fit_booster",
    "gain_by_column",
    "hyperparameters_from",
    "monotone_directions",
    "predict",
    "prepare",
    "shap_importance",
]

MAX_BINS = 256
"""Bins into which the values of a column are sorted."""
_RISING = ("ratio_to_mean", "ratio_to_max", "max_to_profile_max", "mean_to_profile_mean", "zscore")
"""Aggregates of a customer's amounts that should never lower a score as they rise."""


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
        gamma: Least gain of a split.
        monotone: Hold scores to `monotone_directions`. Off: a terminal's frauds of four weeks are
            many also when its fraud is over.
        max_trees: Most trees; serving time grows with them.
        patience_trees: Stop after so many trees without a better validation.
    """

    max_depth: int = 6
    learning_rate: float = 0.05
    min_child_weight: float = 1.0
    subsample: float = 0.8
    colsample_bytree: float = 0.8
    reg_lambda: float = 1.0
    gamma: float = 0.0
    monotone: bool = False
    max_trees: int = 400
    patience_trees: int = 40


_RANGES: dict[str, tuple[float, float]] = {
    "max_depth": (1, 16),
    "learning_rate": (1e-4, 1.0),
    "min_child_weight": (0.0, math.inf),
    "subsample": (0.01, 1.0),
    "colsample_bytree": (0.01, 1.0),
    "reg_lambda": (0.0, math.inf),
    "gamma": (0.0, math.inf),
    "max_trees": (1, 10_000),
    "patience_trees": (1, 10_000),
}
"""Values, ends included, that `hyperparameters_from` takes."""
_WORDS = {"true": True, "false": False}


def hyperparameters_from(settings: Iterable[str]) -> Hyperparameters:
    """Return the defaults with some changed.

    Args:
        settings: Each `NAME=VALUE`, for example `max_depth=5`; the last one of a name counts.

    Raises:
        ConfigurationError: No such setting, or not a value of it.
    """
    defaults = asdict(Hyperparameters())
    changed: dict[str, Any] = {}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in defaults:
            raise ConfigurationError(
                f"{setting!r} sets nothing of the trees. Write NAME=VALUE with one of the names "
                f"{', '.join(defaults)}."
            )
        if name == "monotone":
            value: Any = _WORDS.get(text.lower())
            wanted = "true or false"
        else:
            low, high = _RANGES[name]
            kind = type(defaults[name])
            wanted = f"{'a whole number' if kind is int else 'a number'} from {low:g} to {high:g}"
            try:
                value = kind(text)
            except ValueError:
                value = None
            if value is not None and not low <= value <= high:
                value = None
        if value is None or value == math.inf:
            raise ConfigurationError(f"{name} is {wanted}, not {text!r}.")
        changed[name] = value
    return Hyperparameters(**(defaults | changed))


@dataclass(frozen=True)
class Prepared:
    """Rows sorted into bins, ready for many fits.

    Attributes:
        learned: Rows to learn from.
        judged: Rows of later days, for early stopping.
    """

    learned: xgb.QuantileDMatrix
    judged: xgb.QuantileDMatrix


def _threads() -> int:
    return min(2, os.cpu_count() or 1)


def prepare(
    fit: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
) -> Prepared:
    """Return both parts, rows float32 [n, F] and outcomes bool [n], in bins of one byte a value."""
    learned = xgb.QuantileDMatrix(*fit, max_bin=MAX_BINS, nthread=_threads())
    judged = xgb.QuantileDMatrix(*validation, ref=learned, max_bin=MAX_BINS, nthread=_threads())
    return Prepared(learned, judged)


def monotone_directions(catalogue: tuple[Feature, ...] = CATALOGUE) -> tuple[int, ...]:
    """Return for each column whether a score may only rise with it (1), or is free (0).

    Rising: the amount, the amount against the customer's own history, and a terminal's known
    frauds.
    """
    rising = {
        "transaction": ("amount",),
        "customer": _RISING,
        "terminal": ("fraud_count", "fraud_share"),
    }
    return tuple(int(feature.aggregate in rising.get(feature.entity, ())) for feature in catalogue)


def booster_parameters(hyperparameters: Hyperparameters, seed: int) -> dict[str, Any]:
    """Return XGBoost's parameters, without the number of trees, the patience and the threads."""
    parameters: dict[str, Any] = asdict(hyperparameters)
    del parameters["max_trees"], parameters["patience_trees"]
    if parameters.pop("monotone"):
        parameters["monotone_constraints"] = monotone_directions()
    return parameters | {
        "objective": "binary:logistic",
        "eval_metric": "aucpr",
        "tree_method": "hist",
        "max_bin": MAX_BINS,
        "seed": seed,
    }


def boost(prepared: Prepared, hyperparameters: Hyperparameters, seed: int) -> xgb.Booster:
    """Return the booster, cut behind its best tree by average precision on the later days.

    Args:
        prepared: Rows in bins; all columns of the catalogue if monotone.
        hyperparameters: Settings of the trees.
        seed: Seed of row and column sampling; the same seed gives the same trees.
    """
    booster = xgb.train(
        booster_parameters(hyperparameters, seed) | {"nthread": _threads()},
        prepared.learned,
        num_boost_round=hyperparameters.max_trees,
        evals=[(prepared.judged, "validation")],
        early_stopping_rounds=hyperparameters.patience_trees,
        verbose_eval=False,
    )
    return booster[: booster.best_iteration + 1]


def fit_booster(
    fit: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
    validation: tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]],
    hyperparameters: Hyperparameters,
    seed: int,
) -> xgb.Booster:
    """Return the booster for these rows: `boost` after `prepare`."""
    return boost(prepare(fit, validation), hyperparameters, seed)


def predict(booster: xgb.Booster, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the probabilities of fraud, float32 [n]."""
    if len(rows) == 0:
        return np.empty(0, dtype=np.float32)
    scores: npt.NDArray[np.float32] = booster.inplace_predict(rows)
    return scores.astype(np.float32, copy=False)


def shap_importance(
    booster: xgb.Booster, rows: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return how much each column moves the scores, by TreeSHAP, in log-odds.

    Args:
        booster: The trees.
        rows: Rows to explain, float32 [n, F].

    Returns:
        Mean absolute contribution, and the correlation of contribution and value (0 where either
        never changes), float64 [F] each.
    """
    contributions = booster.predict(xgb.DMatrix(rows), pred_contribs=True)[:, :-1]
    contributions = contributions.astype(np.float64)
    directions = np.zeros(rows.shape[1])
    for column in range(rows.shape[1]):
        known = ~np.isnan(rows[:, column])
        value, effect = rows[known, column].astype(np.float64), contributions[known, column]
        if len(value) > 1 and value.std() > 0.0 and effect.std() > 0.0:
            directions[column] = np.corrcoef(value, effect)[0, 1]
    return np.abs(contributions).mean(axis=0), directions


def gain_by_column(booster: xgb.Booster, columns: int) -> npt.NDArray[np.float64]:
    """Return each column's share of the trees' total gain, float64 [columns]."""
    gains = np.zeros(columns)
    for name, gain in booster.get_score(importance_type="total_gain").items():
        gains[int(name.removeprefix("f"))] = gain
    shares: npt.NDArray[np.float64] = gains / max(gains.sum(), 1e-300)
    return shares
