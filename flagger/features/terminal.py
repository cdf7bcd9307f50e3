"""Terminal history: transactions and confirmed frauds per half day. Kernels only.

Integers in buckets by the transaction's own time: adding is commutative, so the record does not
depend on the order in which transactions and labels arrive, as long as they arrive within the
ring (40 days) and before the label delay has passed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.state.records import (
    LABEL_RING,
    NEW_BUCKET,
    TERMINAL_BUCKET_MS,
    TERMINAL_BUCKETS,
)

__all__ = ["add_count", "add_label", "last_known_bucket", "sum_terminal_windows"]


@kernel
def last_known_bucket(event_time_ms: int, label_delay_ms: int) -> int:
    """Return the last bucket that was over `label_delay_ms` before the transaction."""
    return (event_time_ms - label_delay_ms) // TERMINAL_BUCKET_MS - 1


@kernel
def _advance(r: Any, bucket: int) -> None:
    if bucket <= r.head:
        return
    if r.head == NEW_BUCKET:
        r.head = bucket - TERMINAL_BUCKETS
    for k in range(min(bucket - r.head, TERMINAL_BUCKETS)):
        slot = (bucket - k) % TERMINAL_BUCKETS
        r.counts[slot] = 0
        r.frauds[slot] = 0
    r.head = bucket


@kernel
def add_count(r: Any, bucket: int, count: int) -> bool:
    """Add transactions to a bucket; return False if the bucket has already left the ring."""
    _advance(r, bucket)
    if bucket <= r.head - TERMINAL_BUCKETS:
        return False
    r.counts[bucket % TERMINAL_BUCKETS] += count
    return True


@kernel
def _first_fraud_from(r: Any, bucket: int) -> int:
    for b in range(bucket, r.head + 1):
        if r.frauds[b % TERMINAL_BUCKETS] > 0:
            return b
    return NEW_BUCKET


@kernel
def add_label(r: Any, transaction_key: np.uint64, event_time_ms: int, is_fraud: bool) -> bool:
    """Apply one label; a repeated label changes nothing, a corrected one takes the fraud back.

    Exact while the transaction's bucket is in the ring (40 days) and its label among the terminal's
    last `LABEL_RING`; after that a correction takes neither fraud nor first fraud back, and a
    repeated label counts again.
    Returns False if the transaction's bucket has already left the ring.
    """
    bucket = event_time_ms // TERMINAL_BUCKET_MS
    _advance(r, bucket)
    change = 1 if is_fraud else 0
    base = transaction_key & ~np.uint64(1)
    entry = base | np.uint64(1) if is_fraud else base
    known = False
    for i in range(LABEL_RING):
        if r.labels[i] & ~np.uint64(1) == base and r.labels[i] != 0:
            change -= 1 if r.labels[i] & np.uint64(1) else 0
            r.labels[i] = entry
            known = True
            break
    if not known:
        r.labels[r.label_position] = entry
        r.label_position = (r.label_position + 1) % LABEL_RING
    if change == 0:
        return True
    if bucket <= r.head - TERMINAL_BUCKETS:
        return False
    slot = bucket % TERMINAL_BUCKETS
    if change > 0:
        r.frauds[slot] += 1
        if r.first_fraud_bucket == NEW_BUCKET or bucket < r.first_fraud_bucket:
            r.first_fraud_bucket = bucket
    elif r.frauds[slot] > 0:
        r.frauds[slot] -= 1
        if r.frauds[slot] == 0 and bucket == r.first_fraud_bucket:
            r.first_fraud_bucket = _first_fraud_from(r, bucket + 1)
    return True


@kernel
def sum_terminal_windows(
    r: Any,
    last_bucket: int,
    counts: npt.NDArray[np.float64],
    frauds: npt.NDArray[np.float64],
) -> int:
    """Fill transactions and frauds of the 1, 7 and 30 days that end with `last_bucket`.

    Returns the newest bucket with a fraud among them, or NEW_BUCKET.
    """
    count = 0
    fraud = 0
    newest = NEW_BUCKET
    window = 0
    for age in range(60):
        b = last_bucket - age
        if b <= r.head and b > r.head - TERMINAL_BUCKETS:
            slot = b % TERMINAL_BUCKETS
            count += r.counts[slot]
            if r.frauds[slot] > 0:
                fraud += r.frauds[slot]
                if newest == NEW_BUCKET:
                    newest = b
        if age == 1 or age == 13 or age == 59:
            counts[window] = count
            frauds[window] = fraud
            window += 1
    return newest
