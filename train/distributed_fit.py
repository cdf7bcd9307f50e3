"""XGBoost on the workers that hold the rows, and what else workers do with them.

Workers import this module, so it brings no plots and no measures along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xgboost as xgb

from flagger.errors import ClusterError
from flagger.features import FEATURE_NAMES
from train.distributed_replay import PartitionRows
from train.distributed_shuffle import PLACE
from train.fit import MAX_BINS, Hyperparameters, booster_parameters, predict

__all__ = [
    "OnPart",
    "area_under_precision_recall",
    "count_duplicates",
    "fit_on_workers",
    "gather_outcomes",
    "picked",
    "scored",
    "to_booster",
    "wait",
]

OnPart = Callable[[int, int], None]
"""Called when a part of the step under way is finished: how many are, and how many there are."""
Outcomes = dict[str, list[npt.NDArray[np.bool_]]]
"""By window, each partition's outcomes."""

METRIC = "aucpr_of_all"
_SCORE_BIT_SHIFT = 14
"""Scores that agree in their upper 18 bits count as equal: they differ by 0.2 % at most."""
_SCORE_BINS = (int(np.float32(1.0).view(np.uint32)) >> _SCORE_BIT_SHIFT) + 1
_AMOUNT = FEATURE_NAMES.index("amount")


def wait(futures: Sequence[Any], on_part: OnPart = lambda _finished, _all: None) -> None:
    """Wait for tasks and leave their results where they are; raise what the first one raised."""
    from distributed import as_completed

    for finished, future in enumerate(as_completed(futures), start=1):
        if future.status != "finished":
            future.result()
        on_part(finished, len(futures))


# Run by the workers; an array taken out of a partition's rows there is not copied.


def _rows_of(part: PartitionRows, window: str) -> npt.NDArray[np.float32]:
    return part.rows[window]


def _labels_of(part: PartitionRows, window: str) -> npt.NDArray[np.float32]:
    return part.is_fraud[window].astype(np.float32)


def _outcomes_of(part: PartitionRows) -> dict[str, npt.NDArray[np.bool_]]:
    return dict(part.is_fraud)


def _duplicates_of(part: PartitionRows) -> int:
    return part.duplicates


def to_booster(raw: bytes) -> xgb.Booster:
    """Return the trees that `Booster.save_raw` wrote."""
    booster = xgb.Booster()
    booster.load_model(bytearray(raw))
    booster.set_param({"nthread": 1})  # a worker's threads have partitions of their own
    return booster


def scored(part: PartitionRows, window: str, booster: xgb.Booster) -> pa.Table:
    """Return what measures need of a partition's window, with `score` and `amount`."""
    rows = part.rows[window]
    table = part.named[window].append_column("score", pa.array(predict(booster, rows)))
    return table.append_column("amount", pa.array(rows[:, _AMOUNT]))


def picked(
    part: PartitionRows, window: str, places: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return which of `places` lie in the partition, and their rows."""
    own = part.named[window][PLACE].to_numpy()
    chosen = np.flatnonzero(np.isin(own, places))
    return own[chosen], part.rows[window][chosen]


def area_under_precision_recall(
    scores: npt.NDArray[np.float32], matrix: xgb.DMatrix
) -> tuple[str, float]:
    """Return the area under the precision-recall curve of the rows of all workers together.

    XGBoost's own `aucpr` takes the mean of the workers' areas, which is another number where
    frauds are few, and stops elsewhere. Here the workers add up their histograms of scores. The
    area between two points is that of XGBoost (`CalcDeltaPRAUC` in `src/metric/auc.h`), after
    Davis and Goadrich, ICML 2006.

    Args:
        scores: Probabilities of this worker's rows, float32 [n].
        matrix: Has their outcomes.
    """
    bins = scores.astype(np.float32).view(np.uint32) >> _SCORE_BIT_SHIFT  # rises with the score
    outcomes = matrix.get_label() > 0.5
    counts = np.stack(
        [np.bincount(bins[outcomes == side], minlength=_SCORE_BINS) for side in (True, False)]
    )
    summed = xgb.collective.allreduce(counts.astype(np.float64), xgb.collective.Op.SUM)
    hits, misses = summed.reshape(counts.shape)
    used = np.flatnonzero(hits + misses)[::-1]
    total = max(float(hits.sum()), 1.0)
    found = np.append(0.0, np.cumsum(hits[used]))
    wrong = np.append(0.0, np.cumsum(misses[used]))
    rising = np.flatnonzero(np.diff(found))  # without new hits there is no new area
    h = np.diff(wrong)[rising] / np.diff(found)[rising]
    recall, recall_before = found[1:][rising] / total, found[:-1][rising] / total
    a, b = 1.0 + h, (wrong[:-1][rising] - h * found[:-1][rising]) / total
    area = recall - recall_before
    bent = b != 0.0
    a_b, b_b = a[bent], b[bent]
    area[bent] -= (b_b / a_b) * np.log(
        (a_b * recall[bent] + b_b) / (a_b * recall_before[bent] + b_b)
    )
    return METRIC, float((area / a).sum())


# Run by the driver.


def gather_outcomes(client: Any, parts: Sequence[Any]) -> Outcomes:
    """Return the outcomes of all windows: a byte for each transaction."""
    found = client.gather(client.map(_outcomes_of, parts, pure=False))
    return {name: [outcomes[name] for outcomes in found] for name in found[0]}


def count_duplicates(client: Any, parts: Sequence[Any]) -> int:
    """Return how many transactions repeat an earlier one."""
    return sum(client.gather(client.map(_duplicates_of, parts, pure=False)))


def _matrix(
    client: Any,
    parts: Sequence[Any],
    window: str,
    outcomes: Outcomes,
    reference: Any = None,
) -> Any:
    """Return the rows of a window in bins, each where it is (`DaskQuantileDMatrix`)."""
    from dask import array as da
    from xgboost import dask as dxgb

    rows, labels = [], []
    for part, known in zip(parts, outcomes[window], strict=True):
        n = len(known)
        if n:  # few customers may leave a partition without rows
            held = client.submit(_rows_of, part, window, pure=False)
            rows.append(da.from_delayed(held, (n, len(FEATURE_NAMES)), np.float32))
            held = client.submit(_labels_of, part, window, pure=False)
            labels.append(da.from_delayed(held, (n,), np.float32))
    return dxgb.DaskQuantileDMatrix(
        client, da.concatenate(rows), da.concatenate(labels), max_bin=MAX_BINS, ref=reference
    )


def fit_on_workers(
    client: Any,
    parts: Sequence[Any],
    outcomes: Outcomes,
    hyperparameters: Hyperparameters,
    seed: int,
) -> xgb.Booster:
    """Return the booster, cut behind its best tree by average precision on the validation.

    Args:
        client: Of the cluster.
        parts: Futures of each partition's `PartitionRows`.
        outcomes: From `gather_outcomes`.
        hyperparameters: Settings of the trees.
        seed: Seed of row and column sampling.

    Raises:
        ClusterError: A worker was lost during training.
    """
    from xgboost import dask as dxgb

    # Without the named metric, or each worker would compute its own for nothing.
    parameters = booster_parameters(hyperparameters, seed) | {"disable_default_eval_metric": True}
    del parameters["eval_metric"]
    stopping = xgb.callback.EarlyStopping(
        rounds=hyperparameters.patience_trees,
        metric_name=METRIC,
        data_name="validation",
        maximize=True,
    )
    try:
        learned = _matrix(client, parts, "fit", outcomes)
        judged = _matrix(client, parts, "validation", outcomes, reference=learned)
        found = dxgb.train(
            client,
            parameters,
            learned,
            num_boost_round=hyperparameters.max_trees,
            evals=[(judged, "validation")],
            custom_metric=area_under_precision_recall,
            callbacks=[stopping],
            verbose_eval=False,
        )
    except xgb.core.XGBoostError as error:
        raise ClusterError(
            f"Training on the Dask workers failed ({error}). Mostly a worker was lost, or workers "
            f"cannot reach each other; start the command again."
        ) from error
    booster: xgb.Booster = found["booster"]
    return booster[: booster.best_iteration + 1]
