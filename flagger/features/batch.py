"""Transactions and labels as columns: what every door hands to the feature engine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["CATEGORY_FIELDS", "LabelBatch", "TransactionBatch"]

CATEGORY_FIELDS = ("currency", "merchant_category", "channel", "country")
"""The optional categorical fields, in the order of `TransactionBatch.category_keys`' columns."""


class _Columns:
    """Row selection shared by the column batches."""

    def take(self, rows: npt.NDArray[np.intp] | slice) -> Self:
        """Return the batch of the given rows, in the given order."""
        return type(self)(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})  # type: ignore[arg-type]

    @classmethod
    def concat(cls, batches: list[Self]) -> Self:
        """Return one batch with the rows of all, in order; `batches` must not be empty."""
        if len(batches) == 1:
            return batches[0]
        names = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        return cls(**{name: np.concatenate([getattr(b, name) for b in batches]) for name in names})


@dataclass(frozen=True, slots=True)
class TransactionBatch(_Columns):
    """Transactions in the order in which they change the state; all arrays have n rows.

    Attributes:
        transaction_key: Key of the transaction id (see `hashing`), uint64.
        customer_key: Key of the customer id, uint64.
        terminal_key: Key of the terminal id, uint64.
        event_time_ms: Epoch milliseconds UTC, int64.
        amount: Amount in units of the currency, float64, at least 0.
        category_keys: Keys of `CATEGORY_FIELDS`, uint64 [n, 4], C-contiguous; 0 is absent.
    """

    transaction_key: npt.NDArray[np.uint64]
    customer_key: npt.NDArray[np.uint64]
    terminal_key: npt.NDArray[np.uint64]
    event_time_ms: npt.NDArray[np.int64]
    amount: npt.NDArray[np.float64]
    category_keys: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.event_time_ms)


@dataclass(frozen=True, slots=True)
class LabelBatch(_Columns):
    """Confirmed outcomes of earlier transactions; all arrays have n rows.

    Attributes:
        transaction_key: Key of the labelled transaction's id, uint64.
        terminal_key: Key of the terminal where it happened, uint64.
        event_time_ms: When the labelled transaction happened (not the label), int64.
        is_fraud: 1 confirmed fraud, 0 confirmed genuine, uint8.
    """

    transaction_key: npt.NDArray[np.uint64]
    terminal_key: npt.NDArray[np.uint64]
    event_time_ms: npt.NDArray[np.int64]
    is_fraud: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.event_time_ms)
