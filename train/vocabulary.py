"""Category codes: which values a model knows, and in which order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from flagger.features import CATEGORY_FIELDS
from flagger.features.contract import MAX_VOCABULARY

__all__ = ["build_vocabularies", "order_values"]

_LEAST_ROWS = 20
"""Rarer values are `unknown`: a code that few rows use teaches a tree nothing."""
_PRIOR_ROWS = 200
"""Weight of the overall fraud share in a value's own: keeps rare values in the middle."""


def order_values(counts: pd.DataFrame, prior: float) -> tuple[str, ...]:
    """Return the values of one field that a model knows, in the order of their fraud share.

    Args:
        counts: By value, in the order of the values: transactions (`size`) and frauds (`sum`).
        prior: Fraud share of all transactions.
    """
    counts = counts[(counts["size"] >= _LEAST_ROWS) & (counts.index != "")]
    counts = counts.nlargest(MAX_VOCABULARY, "size")
    share = (counts["sum"] + _PRIOR_ROWS * prior) / (counts["size"] + _PRIOR_ROWS)
    pairs = zip(share.tolist(), share.index.tolist(), strict=True)
    return tuple(str(word) for _, word in sorted(pairs))


def build_vocabularies(table: pa.Table, rows: npt.NDArray[np.bool_]) -> dict[str, tuple[str, ...]]:
    """Return each categorical field's values in the order of their fraud share.

    Trees split codes as plain numbers, because categorical splits do not survive the conversion
    to ONNX; ordered by fraud share, one split separates risky values from the others.

    Args:
        table: Transactions in `SCHEMA`; an outcome that is null counts as genuine.
        rows: Which of them may be looked at (those the model is fitted on), bool [n].
    """
    chosen = table.select([*CATEGORY_FIELDS, "is_fraud"]).filter(pa.array(rows))
    is_fraud = pc.fill_null(chosen["is_fraud"], False).to_numpy()
    prior = float(is_fraud.mean()) if len(is_fraud) else 0.0
    vocabularies = {}
    for name in CATEGORY_FIELDS:
        values = pd.Series(chosen[name].to_pandas(), name="value")
        counts = pd.Series(is_fraud, name="fraud").groupby(values).agg(["size", "sum"])
        vocabularies[name] = order_values(counts, prior)
    return vocabularies
