"""The proof that what is served answers as the trained booster does, on rows that try to break it.

Rows come from two sources. Real feature rows, where training left some. And rows built from the
model's own split thresholds: values at a threshold, one step of float32 below and above it, missing
values, the unknown-category code 0, zero, extremes and denormals. That is where the backends could
differ: in `<` against `<=`, in rounding, and in which way a missing value goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from export.normalise import NormalisedModel
from flagger.errors import PublishError

__all__ = [
    "DEFAULT_ROWS",
    "SUM_TOLERANCE",
    "TOLERANCE",
    "Scoring",
    "boundary_rows",
    "compare",
    "compare_sums",
    "parity_rows",
    "thresholds_of",
]

TOLERANCE = 1e-5
"""Largest difference between two probabilities of the same row; rounding alone makes some 1e-6."""

SUM_TOLERANCE = 1e-4
"""Largest difference between a row's raw margin and the sum of its contributions."""

DEFAULT_ROWS = 10_000

Scoring = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
"""Float32 [n, F] rows to float32 [n] probabilities of fraud."""

_SPECIAL = np.array(
    [np.nan, np.nan, 0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 1e-40, -1e-40], dtype=np.float32
)


def parity_rows(
    model: NormalisedModel,
    n_rows: int,
    real: npt.NDArray[np.float32] | None = None,
    seed: int = 7,
) -> npt.NDArray[np.float32]:
    """Return the rows to compare on, float32 [n_rows, F]: up to half real ones, the rest built."""
    if real is None or len(real) == 0:
        return boundary_rows(model, n_rows, seed)
    picked = np.random.default_rng(seed).permutation(len(real))[: n_rows // 2]
    rest = boundary_rows(model, n_rows - len(picked), seed)
    return np.concatenate([np.ascontiguousarray(real[picked], dtype=np.float32), rest])


def boundary_rows(model: NormalisedModel, n_rows: int, seed: int = 7) -> npt.NDArray[np.float32]:
    """Return rows built from the split thresholds, float32 [n_rows, F]; the same for one seed.

    The first rows hold one special value in every column; all others mix freely.
    """
    random = np.random.default_rng(seed)
    rows = np.empty((n_rows, model.n_features), dtype=np.float32)
    for column, thresholds in enumerate(thresholds_of(model)):
        around = [thresholds, np.nextafter(thresholds, -np.inf), np.nextafter(thresholds, np.inf)]
        values = np.concatenate([*around, _SPECIAL]).astype(np.float32)
        # A quarter special values, however many thresholds the column has.
        special = random.random(n_rows) < (0.25 if len(thresholds) else 1.0)
        rows[:, column] = np.where(
            special, random.choice(_SPECIAL, n_rows), random.choice(values, n_rows)
        )
    head = min(n_rows, len(_SPECIAL))
    rows[:head] = _SPECIAL[:head, None]
    return rows


def compare(
    name: str,
    expected: npt.NDArray[np.float32],
    answered: npt.NDArray[np.float32],
    rows: npt.NDArray[np.float32],
) -> dict[str, Any]:
    """Return how far an export's scores are from the booster's, for the manifest.

    Args:
        name: Who answered, for the error's text.
        expected: The booster's scores, float32 [n].
        answered: The export's scores, float32 [n].
        rows: The rows, float32 [n, F].

    Raises:
        PublishError: A score differs by more than TOLERANCE, or is not a number.
    """
    if answered.shape != expected.shape:
        raise PublishError(
            f"{name} answered scores of shape {answered.shape} where {expected.shape} was expected."
        )
    difference = np.abs(expected.astype(np.float64) - answered.astype(np.float64))
    difference[~np.isfinite(difference)] = np.inf
    worst = int(difference.argmax())
    if difference[worst] > TOLERANCE:
        too_far = int((difference > TOLERANCE).sum())
        raise PublishError(
            f"{name} does not answer as the trained booster does: {too_far:,} of {len(rows):,} "
            f"rows differ by more than {TOLERANCE:g}. Worst is row {worst}: booster "
            f"{expected[worst]:.8f}, {name} {answered[worst]:.8f}, features "
            f"{[float(value) for value in rows[worst]]}. Nothing was published."
        )
    return {
        "rows": len(rows),
        "max_abs_difference": float(difference[worst]),
        "worst_row": worst,
        "tolerance": TOLERANCE,
    }


def compare_sums(
    name: str,
    margins: npt.NDArray[np.float32],
    contributions: npt.NDArray[np.float32],
) -> dict[str, Any]:
    """Return how far the sums of contributions are from the booster's margins.

    Args:
        name: Who answered, for the error's text.
        margins: The booster's raw margins (log-odds), float32 [n].
        contributions: Of each feature and the bias, float32 [n, F + 1].

    Raises:
        PublishError: A sum differs by more than SUM_TOLERANCE.
    """
    sums = contributions.astype(np.float64).sum(axis=1)
    difference = np.abs(sums - margins)
    difference[~np.isfinite(difference)] = np.inf
    worst = int(difference.argmax())
    if difference[worst] > SUM_TOLERANCE:
        raise PublishError(
            f"{name} explains another model: the contributions of row {worst} add up to "
            f"{sums[worst]:.6f}, its raw margin is {margins[worst]:.6f}. Nothing was published."
        )
    return {
        "rows": len(margins),
        "max_abs_difference": float(difference[worst]),
        "tolerance": SUM_TOLERANCE,
    }


def thresholds_of(model: NormalisedModel) -> list[npt.NDArray[np.float32]]:
    """Return the distinct split thresholds of each column, float32."""
    trees = json.loads(model.text)["learner"]["gradient_booster"]["model"]["trees"]
    columns, values = [], []
    for tree in trees:
        is_split = np.array(tree["left_children"]) >= 0
        columns.append(np.array(tree["split_indices"], dtype=np.int64)[is_split])
        values.append(np.array(tree["split_conditions"], dtype=np.float32)[is_split])
    column = np.concatenate(columns)
    value = np.concatenate(values)
    return [np.unique(value[column == index]) for index in range(model.n_features)]
