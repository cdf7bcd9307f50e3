"""Where the model is good and where not: measures by segment, and lift and gain."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from sklearn.metrics import average_precision_score

__all__ = ["LIFT_SHARES", "lift_table", "segment_tables"]

_FIELDS = ("channel", "merchant_category", "country", "currency")
_AMOUNT_EDGES = (10.0, 25.0, 50.0, 100.0, 250.0, 1000.0)
_MOST_SEGMENTS = 12
_LEAST_FRAUDS = 10
"""Average precision of fewer frauds is luck."""
LIFT_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

Scores = npt.NDArray[np.float32]
Outcomes = npt.NDArray[np.bool_]


def _band_names() -> list[str]:
    """Return the amount bands from the lowest to the highest."""
    names = [f"below {_AMOUNT_EDGES[0]:g}"]
    names += [f"{low:g} to {high:g}" for low, high in pairwise(_AMOUNT_EDGES)]
    return [*names, f"from {_AMOUNT_EDGES[-1]:g}"]


def _bands(amounts: npt.NDArray[np.float32]) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = np.array(_band_names(), dtype=object)[
        np.searchsorted(_AMOUNT_EDGES, amounts, side="right")
    ]
    return found


def _row(
    name: str, scores: Scores, is_fraud: Outcomes, flagged: Outcomes, amounts: Scores
) -> dict[str, Any]:
    frauds, flags = int(is_fraud.sum()), int(flagged.sum())
    hits = flagged & is_fraud
    lost = float(amounts[is_fraud].sum(dtype=np.float64))
    ranked = frauds >= _LEAST_FRAUDS and frauds < len(is_fraud)
    return {
        "segment": name,
        "transactions": len(is_fraud),
        "frauds": frauds,
        "fraud_share": frauds / len(is_fraud),
        "flagged_share": flags / len(is_fraud),
        "precision": int(hits.sum()) / flags if flags else None,
        "recall": int(hits.sum()) / frauds if frauds else None,
        "amount_recall": float(amounts[hits].sum(dtype=np.float64)) / lost if lost else None,
        "average_precision": float(average_precision_score(is_fraud, scores)) if ranked else None,
    }


def segment_tables(
    table: pa.Table,
    place: npt.NDArray[np.int64],
    scores: Scores,
    is_fraud: Outcomes,
    flagged: Outcomes,
) -> dict[str, list[dict[str, Any]]]:
    """Return measures by channel, category, country, currency and amount band.

    Fields with a single value are left out, and so are all but the 12 most frequent values. Amount
    bands rise; other values are in the order of their frequency.

    Args:
        table: Transactions in `SCHEMA`.
        place: Places of the judged ones in it, int64 [n].
        scores: float32 [n].
        is_fraud: bool [n].
        flagged: Which were sent to review or declined, bool [n].
    """
    amounts = table["amount"].take(pa.array(place)).to_numpy().astype(np.float32)
    columns = {"amount": _bands(amounts)}
    for name in _FIELDS:
        values = table[name].take(pa.array(place)).to_pandas()
        columns[name] = values.where(values.notna(), "unknown").to_numpy(dtype=object)
    found = {}
    for name, values in columns.items():
        counts = pd.Series(values).value_counts()
        if len(counts) < 2:
            continue
        frequent = [*counts.index[:_MOST_SEGMENTS]]
        if name == "amount":
            frequent.sort(key=_band_names().index)
        found[name] = [
            _row(str(value), scores[m], is_fraud[m], flagged[m], amounts[m])
            for value in frequent
            for m in [values == value]
        ]
    return found


def lift_table(scores: Scores, is_fraud: Outcomes) -> list[dict[str, float]]:
    """Return gain (share of frauds) and lift (gain over the share looked at) of the top scores."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(is_fraud[order])
    rows = []
    for share in LIFT_SHARES:
        looked_at = max(1, int(share * len(scores)))
        gain = int(hits[looked_at - 1]) / max(int(hits[-1]), 1)
        rows.append({"share": share, "gain": gain, "lift": gain * len(scores) / looked_at})
    return rows
