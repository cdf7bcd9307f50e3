"""The topics as training data: all transactions, each with what its labels say by now."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flagger.errors import BadMessageError
from flagger.features import CATEGORY_FIELDS
from flagger.features.hashing import key_of
from flagger.state.records import DAY_MS
from flagger.wire.messages import Transaction, parse_transaction
from train.sources import SCHEMA

__all__ = ["History", "history_of"]

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class History:
    """Transactions with outcomes as far as they are known.

    Attributes:
        table: In `SCHEMA`, ordered by time; `is_fraud` is null where the outcome is not known.
        mature_to: Last day that is old enough for its labels to have come.
        repeats: Messages that repeat a transaction id, left out.
        unreadable: Messages that are no transaction, left out.
        days_without_labels: Days that are old enough, but no label has reached: not judged.
    """

    table: pa.Table
    mature_to: date
    repeats: int
    unreadable: int
    days_without_labels: int


def history_of(
    pieces: Iterable[list[bytes]], labels: dict[int, bool], maturity_days: int
) -> History:
    """Return the history of the values of the transactions topic.

    A labelled transaction is what its latest label says. An unlabelled one counts as genuine once
    its day is `maturity_days` old and has labels; else its outcome is not known.

    Args:
        pieces: Values of all messages.
        labels: From `train.matured.read_labels`.
        maturity_days: Counted from the newest transaction.
    """
    now_ms = time.time_ns() // 1_000_000
    seen: set[int] = set()
    batches: list[pa.RecordBatch] = []
    keys: list[npt.NDArray[np.uint64]] = []
    repeats = unreadable = 0
    for values in pieces:
        found: list[Transaction] = []
        new: list[int] = []
        for value in values:
            try:
                transaction = parse_transaction(value, now_ms)
            except BadMessageError:
                unreadable += 1
                continue
            key = key_of(transaction.transaction_id)
            if key in seen:
                repeats += 1
                continue
            seen.add(key)
            new.append(key)
            found.append(transaction)
        batches.append(_batch(found))
        keys.append(np.array(new, dtype=np.uint64))
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    all_keys = np.concatenate([np.empty(0, np.uint64), *keys])
    outcomes, mature_to, without = _outcomes(table, all_keys, labels, maturity_days)
    place = SCHEMA.get_field_index("is_fraud")
    table = table.set_column(place, SCHEMA.field("is_fraud"), outcomes)
    order = [("event_time", "ascending"), ("transaction_id", "ascending")]
    return History(table.sort_by(order), mature_to, repeats, unreadable, without)


def _batch(transactions: list[Transaction]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {
        "transaction_id": [t.transaction_id for t in transactions],
        "event_time": [t.event_time_ms for t in transactions],
        "customer_id": [t.customer_id for t in transactions],
        "terminal_id": [t.terminal_id for t in transactions],
        "amount": [float(t.amount) for t in transactions],
        **{field: [getattr(t, field) for t in transactions] for field in CATEGORY_FIELDS},
    }
    arrays = [
        pa.array(columns[field.name], pa.int64()).cast(field.type)
        if field.name == "event_time"
        else pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(len(transactions), field.type)
        for field in SCHEMA
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _outcomes(
    table: pa.Table, keys: npt.NDArray[np.uint64], labels: dict[int, bool], maturity_days: int
) -> tuple[pa.Array, date, int]:
    """Return the outcomes, the last mature day, and how many mature days have no label."""
    if not len(keys):
        return pa.nulls(0, pa.bool_()), _EPOCH, 0
    days = table["event_time"].cast(pa.int64()).to_numpy() // DAY_MS
    told = [labels.get(key) for key in keys.tolist()]
    labelled = np.array([outcome is not None for outcome in told], dtype=np.bool_)
    is_fraud = np.array([bool(outcome) for outcome in told], dtype=np.bool_)
    last_mature = int(days.max()) - maturity_days
    mature = days <= last_mature
    with_labels = np.isin(days, np.unique(days[labelled]))
    known = labelled | (mature & with_labels)
    without = len(np.unique(days[mature & ~with_labels]))
    mature_to = _EPOCH + timedelta(days=last_mature)
    return pa.array(is_fraud, mask=~known), mature_to, without
