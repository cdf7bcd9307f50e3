"""Transactions that were accepted but are not in their customer's record yet.

The record follows the log by a second or more; a burst of payments must not slip through this gap.
Each accepted transaction is therefore kept beside the record until the record includes it, and
every later request of the customer counts it: on any replica, whatever the streamer does.

An entry has a place: the order in which a customer's transactions were accepted. A request counts
the record and the entries with lower places, so parallel requests see 0, 1, 2, ... others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.errors import StateStoreError
from flagger.features import TransactionBatch

__all__ = ["PENDING", "Pending", "entry_of", "log_place"]

UNWRITTEN_AGE_S = 60
"""How long a transaction counts that Kafka has not acknowledged: its caller may still repeat it."""

_HEAD = 8  # place and admitted_s; the store's script writes them
PENDING = np.dtype(
    [
        ("place", ">u4"),
        ("admitted_s", ">u4"),  # clock of the Valkey server, epoch seconds
        ("transaction_key", ">u8"),
        ("terminal_key", ">u8"),
        ("event_time_ms", ">i8"),
        ("amount", ">f8"),
        ("category_keys", ">u8", (4,)),
        ("partition", ">i2"),  # in the transactions topic; -1: not acknowledged
        ("offset", ">i8"),
    ]
)
"""One accepted transaction, 82 bytes; no ids, keys only."""


def entry_of(batch: TransactionBatch) -> bytes:
    """Return the entry of the one transaction in `batch`, without what the store puts first."""
    entry = np.zeros(1, dtype=PENDING)
    for name in ("transaction_key", "terminal_key", "event_time_ms", "amount", "category_keys"):
        entry[name] = getattr(batch, name)
    entry["partition"] = entry["offset"] = -1
    return entry.tobytes()[_HEAD:]


def log_place(partition: int, offset: int) -> bytes:
    """Return the last 10 bytes of the entry of a transaction that stands there in the log."""
    return struct.pack(">hq", partition, offset)


@dataclass(frozen=True, slots=True)
class Pending:
    """The entries of one customer, as one request sees them.

    Attributes:
        before: PENDING entries that it counts, in their order.
        included: Transaction keys (8 bytes) of entries that the record includes by now, or that
            were never acknowledged: they can go.
    """

    before: npt.NDArray[Any]
    included: list[bytes]

    @classmethod
    def of(
        cls, values: list[bytes], own_key: bytes, customers: npt.NDArray[Any], now_s: int
    ) -> Pending:
        """Sort out what the store holds.

        Args:
            values: The entries, in any order; other values are passed over.
            own_key: The request's transaction key, 8 bytes.
            customers: The CUSTOMER record, 0 or 1.
            now_s: The Valkey server's clock.
        """
        entries = np.frombuffer(
            b"".join(v for v in values if len(v) == PENDING.itemsize), dtype=PENDING
        )
        if len(entries) == 1:  # by far the most requests: it is alone
            return cls(entries[:0], [])
        own = entries["transaction_key"] == int.from_bytes(own_key)
        if not own.any():
            raise StateStoreError(
                "An accepted transaction (ff:p:*) in Valkey cannot be read; another release wrote "
                "it. Use another Valkey database, or wait 15 minutes: these entries expire."
            )
        unwritten = entries["partition"] < 0
        included = unwritten & (entries["admitted_s"] + UNWRITTEN_AGE_S < now_s)
        for record in customers:
            included |= (entries["partition"] == record["partition"]) & (
                entries["offset"] < record["applied_offset"]
            )
            # Its place in the log was never noted, but the record remembers its id.
            kept = entries["transaction_key"][:, np.newaxis] == record["ids"]
            included |= unwritten & kept.any(axis=1)
        before = entries[~included & (entries["place"] < entries["place"][own])]
        gone = entries["transaction_key"][included & ~own].tobytes()
        return cls(
            before[np.argsort(before["place"])],
            [gone[i : i + 8] for i in range(0, len(gone), 8)],
        )

    def followed_by(self, batch: TransactionBatch) -> TransactionBatch:
        """Return the entries before the request's own transaction, and it (`batch`) as last row."""
        if not len(self.before):
            return batch
        n = len(self.before)
        earlier = TransactionBatch(
            transaction_key=self.before["transaction_key"].astype(np.uint64),
            customer_key=np.repeat(batch.customer_key, n),
            terminal_key=self.before["terminal_key"].astype(np.uint64),
            event_time_ms=self.before["event_time_ms"].astype(np.int64),
            amount=self.before["amount"].astype(np.float64),
            category_keys=self.before["category_keys"].astype(np.uint64, order="C"),
        )
        return TransactionBatch.concat([earlier, batch])
