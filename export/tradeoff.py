"""What each threshold would have flagged in the test window: kept beside the model.

`flagger policy set` chooses thresholds from this table, without the data and without training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flagger.errors import ConfigurationError, PublishError

__all__ = ["TRADE_OFF_FILE", "budget_threshold", "precision_threshold", "read_table", "trade_off"]

TRADE_OFF_FILE = "thresholds.json"
_STEPS = 200
_LEAST_FLAGGED = 20
"""A share or a precision of fewer transactions is luck."""


def trade_off(scores_file: Path) -> str | None:
    """Return the table as JSON text, from what training left; None if it left no scores.

    One entry per threshold, from high to low: `threshold`, `flagged_share`, `precision`, `recall`;
    and once `transactions`, `frauds` and `transactions_per_day`.

    Raises:
        PublishError: The file cannot be read.
    """
    if not scores_file.is_file():
        return None
    try:
        table = pq.read_table(scores_file, columns=["score", "is_fraud", "event_time"])
        days = pc.count_distinct(pc.cast(table["event_time"], pa.int64()).to_numpy() // 86_400_000)
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise PublishError(
            f"{scores_file} does not hold scores and outcomes ({error}). Run `flagger train` again."
        ) from error
    scores = table["score"].to_numpy().astype(np.float32)
    is_fraud = table["is_fraud"].to_numpy(zero_copy_only=False).astype(np.bool_)
    entries = _entries(scores, is_fraud)
    document = {
        "transactions": len(scores),
        "frauds": int(is_fraud.sum()),
        "transactions_per_day": len(scores) / max(int(days.as_py()), 1),
        "thresholds": entries,
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _entries(
    scores: npt.NDArray[np.float32], is_fraud: npt.NDArray[np.bool_]
) -> list[dict[str, float]]:
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(is_fraud[order])
    last_of_ties = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    wanted = np.geomspace(min(_LEAST_FLAGGED, len(ranked)), len(ranked), _STEPS)
    places = last_of_ties[np.searchsorted(last_of_ties, wanted - 1).clip(max=len(last_of_ties) - 1)]
    frauds = max(int(hits[-1]), 1)
    return [
        {
            "threshold": float(ranked[i]),
            "flagged_share": (i + 1) / len(ranked),
            "precision": int(hits[i]) / (i + 1),
            "recall": int(hits[i]) / frauds,
        }
        for i in np.unique(places).tolist()
    ]


def read_table(version_folder: Path) -> dict[str, Any]:
    """Read a version's table.

    Raises:
        ConfigurationError: The version has none.
    """
    path = version_folder / TRADE_OFF_FILE
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} cannot be read ({error}): without it thresholds cannot be chosen by a budget. "
            f"Give them as --review and --decline, or export the training again."
        ) from error
    return table


def budget_threshold(table: dict[str, Any], alert_share: float) -> dict[str, float]:
    """Return the entry of the lowest threshold that flags at most this share of transactions.

    Raises:
        ConfigurationError: The budget is smaller than the table can tell.
    """
    within = [e for e in table["thresholds"] if e["flagged_share"] <= alert_share]
    if not within:
        least = table["thresholds"][0]["flagged_share"]
        raise ConfigurationError(
            f"An alert budget of {alert_share:.4%} is below what {table['transactions']:,} test "
            f"transactions can tell ({least:.4%}). Give --review and --decline instead."
        )
    entry: dict[str, float] = within[-1]
    return entry


def precision_threshold(table: dict[str, Any], precision: float) -> dict[str, float] | None:
    """Return the entry of the lowest threshold with at least this share of frauds, or None."""
    precise = [e for e in table["thresholds"] if e["precision"] >= precision]
    entry: dict[str, float] | None = precise[-1] if precise else None
    return entry
