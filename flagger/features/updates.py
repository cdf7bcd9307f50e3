"""What else moves terminals' records: labels and shared activity; and the fingerprint of a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.features import terminal
from flagger.features.hashing import hash_span

__all__ = ["apply_activity", "apply_labels", "hash_rows"]


@kernel
def apply_labels(
    records: Any,
    dirty: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int32],
    transaction_keys: npt.NDArray[np.uint64],
    times_ms: npt.NDArray[np.int64],
    is_fraud: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.int64],
) -> int:
    """Apply labels to the terminals' records; return how many came too late for the ring.

    An offset of -1 means "not from a log"; others are skipped where the record includes them.
    """
    too_late = 0
    for i in range(rows.shape[0]):
        r = records[rows[i]]
        if offsets[i] >= 0:
            if offsets[i] < r.label_offset:
                continue
            r.label_offset = offsets[i] + 1
        if not terminal.add_label(r, transaction_keys[i], times_ms[i], is_fraud[i] == 1):
            too_late += 1
        dirty[rows[i]] = 1
    return too_late


@kernel
def apply_activity(
    records: Any,
    dirty: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int32],
    buckets: npt.NDArray[np.int32],
    counts: npt.NDArray[np.uint32],
    offset: int,
) -> int:
    """Apply one entry of the activity log to the terminals' records.

    Records that already include `offset` are left as they are. Returns how many counts came too
    late for the ring.
    """
    too_late = 0
    for i in range(rows.shape[0]):
        r = records[rows[i]]
        if offset < r.activity_offset:
            continue
        if not terminal.add_count(r, buckets[i], counts[i]):
            too_late += counts[i]
        dirty[rows[i]] = 1
    for i in range(rows.shape[0]):
        records[rows[i]].activity_offset = max(records[rows[i]].activity_offset, offset + 1)
    return too_late


@kernel
def hash_rows(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return XXH64 of each row of bytes, uint64 [n]: the fingerprint of a feature row."""
    hashes = np.empty(raw.shape[0], dtype=np.uint64)
    for i in range(raw.shape[0]):
        hashes[i] = hash_span(raw[i], 0, raw.shape[1])
    return hashes
