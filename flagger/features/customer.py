"""Customer history: advance the rings, sum the windows, add a transaction. Kernels only.

Every function works on one record of `flagger.state.records.CUSTOMER`. A transaction that is
older than the newest one of its customer is *late*: it is scored as of its own time and counted
in its own bucket; if that bucket has already left a ring it is left out of that ring (for days:
added to the profile), so a late transaction never counts as a recent one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.state.records import (
    DAY_BUCKETS,
    DAY_MS,
    FIVE_MINUTE_BUCKETS,
    FIVE_MINUTES_MS,
    HOUR_BUCKETS,
    HOUR_MS,
    ID_RING,
    NEW_BUCKET,
    SEEN_TERMINALS,
    SEEN_VALUES,
)

__all__ = ["add_transaction", "advance", "is_repeated", "saw_value", "sum_windows", "visits"]

_SATURATED_16 = 65_535
_PROFILE_AGE_DAYS = 14


@kernel
def _cleared(head: int, bucket: int, length: int) -> int:
    """Return how many slots after `head` must be emptied to move the ring to `bucket`."""
    return min(bucket - head, length)


@kernel
def advance(r: Any, event_time_ms: int) -> None:
    """Move the three rings forward to the time; days that leave the ring join the profile."""
    bucket = event_time_ms // FIVE_MINUTES_MS
    if bucket > r.five_minute_head:
        if r.five_minute_head == NEW_BUCKET:
            r.five_minute_head = bucket - FIVE_MINUTE_BUCKETS
        for k in range(1, _cleared(r.five_minute_head, bucket, FIVE_MINUTE_BUCKETS) + 1):
            slot = (bucket - k + 1) % FIVE_MINUTE_BUCKETS
            r.five_minute_count[slot] = 0
            r.five_minute_sum[slot] = 0.0
        r.five_minute_head = bucket
    bucket = event_time_ms // HOUR_MS
    if bucket > r.hour_head:
        if r.hour_head == NEW_BUCKET:
            r.hour_head = bucket - HOUR_BUCKETS
        for k in range(1, _cleared(r.hour_head, bucket, HOUR_BUCKETS) + 1):
            slot = (bucket - k + 1) % HOUR_BUCKETS
            r.hour_count[slot] = 0
            r.hour_sum[slot] = 0.0
        r.hour_head = bucket
    bucket = event_time_ms // DAY_MS
    if bucket > r.day_head:
        if r.day_head == NEW_BUCKET:
            r.day_head = bucket - DAY_BUCKETS
        # Oldest first, so that the profile's sum is added up in the order of the days.
        for k in range(_cleared(r.day_head, bucket, DAY_BUCKETS), 0, -1):
            slot = (bucket - k + 1) % DAY_BUCKETS
            if r.day_count[slot] > 0:
                r.profile_count += r.day_count[slot]
                r.profile_sum += r.day_sum[slot]
                r.profile_max = max(r.profile_max, r.day_max[slot])
            r.day_count[slot] = 0
            r.day_sum[slot] = 0.0
            r.day_max[slot] = 0.0
        r.day_head = bucket


@kernel
def sum_windows(
    r: Any,
    event_time_ms: int,
    counts: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    maxima: npt.NDArray[np.float64],
) -> None:
    """Fill count, sum and maximum of the amounts per window of `program.CUSTOMER_WINDOWS`.

    The maximum is kept by day only: it stays 0 for `1h` and `24h`.
    """
    count = 0.0
    total = 0.0
    bucket = event_time_ms // FIVE_MINUTES_MS
    oldest = max(bucket, r.five_minute_head) - FIVE_MINUTE_BUCKETS
    for b in range(bucket, max(bucket - FIVE_MINUTE_BUCKETS, oldest), -1):
        count += r.five_minute_count[b % FIVE_MINUTE_BUCKETS]
        total += r.five_minute_sum[b % FIVE_MINUTE_BUCKETS]
    counts[0], sums[0], maxima[0] = count, total, 0.0

    count = 0.0
    total = 0.0
    bucket = event_time_ms // HOUR_MS
    oldest = max(bucket, r.hour_head) - HOUR_BUCKETS
    for b in range(bucket, max(bucket - HOUR_BUCKETS, oldest), -1):
        count += r.hour_count[b % HOUR_BUCKETS]
        total += r.hour_sum[b % HOUR_BUCKETS]
    counts[1], sums[1], maxima[1] = count, total, 0.0

    count = 0.0
    total = 0.0
    largest = 0.0
    profile_count = float(r.profile_count)
    profile_sum = r.profile_sum
    profile_max = float(r.profile_max)
    bucket = event_time_ms // DAY_MS
    oldest = max(bucket, r.day_head) - DAY_BUCKETS
    window = 2
    for age in range(DAY_BUCKETS):
        b = bucket - age
        if b > oldest:
            slot = b % DAY_BUCKETS
            if r.day_count[slot] > 0:
                count += r.day_count[slot]
                total += r.day_sum[slot]
                largest = max(largest, float(r.day_max[slot]))
                if age >= _PROFILE_AGE_DAYS:
                    profile_count += r.day_count[slot]
                    profile_sum += r.day_sum[slot]
                    profile_max = max(profile_max, float(r.day_max[slot]))
        if age == 6 or age == 13 or age == 29:
            counts[window], sums[window], maxima[window] = count, total, largest
            window += 1
    counts[5], sums[5], maxima[5] = profile_count, profile_sum, profile_max


@kernel
def is_repeated(r: Any, transaction_key: np.uint64) -> bool:
    """Return True if the id is among the customer's last `ID_RING` transaction ids."""
    for i in range(ID_RING):
        if r.ids[i] == transaction_key:
            return True
    return False


@kernel
def _short(key: np.uint64) -> np.uint32:
    """Return 32 bits of a key; never 0, which marks an empty place."""
    return max(np.uint32(key >> np.uint64(32)), np.uint32(1))


@kernel
def saw_value(r: Any, field: int, key: np.uint64) -> bool:
    """Return True if the customer has used this value of the categorical field before."""
    short = _short(key)
    for i in range(SEEN_VALUES):
        if r.seen_values[field, i] == short:
            return True
    return False


@kernel
def visits(r: Any, terminal_key: np.uint64) -> int:
    """Return how often the customer was seen at this terminal, among the terminals remembered."""
    short = _short(terminal_key)
    for i in range(SEEN_TERMINALS):
        if r.seen_terminals[i] == short and r.seen_terminal_count[i] > 0:
            return int(r.seen_terminal_count[i])
    return 0


@kernel
def _remember_value(r: Any, field: int, key: np.uint64) -> None:
    if not saw_value(r, field, key):
        position = r.seen_position[field]
        r.seen_values[field, position] = _short(key)
        r.seen_position[field] = (position + 1) % SEEN_VALUES


@kernel
def _remember_terminal(r: Any, terminal_key: np.uint64, day: int) -> None:
    short = _short(terminal_key)
    stamp = np.uint16(day % 65_536)
    place = 0
    for i in range(SEEN_TERMINALS):
        if r.seen_terminal_count[i] > 0 and r.seen_terminals[i] == short:
            r.seen_terminal_count[i] = min(r.seen_terminal_count[i] + 1, _SATURATED_16)
            r.seen_terminal_day[i] = stamp
            return
        if r.seen_terminal_count[i] == 0:
            if r.seen_terminal_count[place] != 0:
                place = i
        elif (
            r.seen_terminal_count[place] != 0
            and r.seen_terminal_day[i] < r.seen_terminal_day[place]
        ):
            place = i
    r.seen_terminals[place] = short
    r.seen_terminal_count[place] = 1
    r.seen_terminal_day[place] = stamp


@kernel
def _add_to_rings(r: Any, event_time_ms: int, amount: float) -> None:
    bucket = event_time_ms // FIVE_MINUTES_MS
    if bucket > r.five_minute_head - FIVE_MINUTE_BUCKETS:
        slot = bucket % FIVE_MINUTE_BUCKETS
        r.five_minute_count[slot] = min(r.five_minute_count[slot] + 1, _SATURATED_16)
        r.five_minute_sum[slot] += amount
    bucket = event_time_ms // HOUR_MS
    if bucket > r.hour_head - HOUR_BUCKETS:
        slot = bucket % HOUR_BUCKETS
        r.hour_count[slot] = min(r.hour_count[slot] + 1, _SATURATED_16)
        r.hour_sum[slot] += amount
    bucket = event_time_ms // DAY_MS
    if bucket > r.day_head - DAY_BUCKETS:
        slot = bucket % DAY_BUCKETS
        r.day_count[slot] = min(r.day_count[slot] + 1, _SATURATED_16)
        r.day_sum[slot] += amount
        r.day_max[slot] = max(r.day_max[slot], np.float32(amount))
    else:
        r.profile_count += 1
        r.profile_sum += amount
        r.profile_max = max(r.profile_max, np.float32(amount))


@kernel
def add_transaction(
    r: Any,
    transaction_key: np.uint64,
    terminal_key: np.uint64,
    event_time_ms: int,
    amount: float,
    category_keys: npt.NDArray[np.uint64],
) -> None:
    """Count one transaction in the record; the rings must have been advanced to its time."""
    _add_to_rings(r, event_time_ms, amount)
    r.count += 1
    delta = amount - r.amount_mean
    r.amount_mean += delta / r.count
    r.amount_m2 += delta * (amount - r.amount_mean)
    if r.count == 1 or event_time_ms < r.first_event_ms:
        r.first_event_ms = event_time_ms
    if r.count == 1 or event_time_ms > r.last_event_ms:
        r.last_event_ms = event_time_ms
    part = (event_time_ms % DAY_MS) // (3 * HOUR_MS)
    r.three_hour_count[part] = min(r.three_hour_count[part] + 1, _SATURATED_16)
    r.ids[r.id_position] = transaction_key
    r.id_position = (r.id_position + 1) % ID_RING
    for field in range(category_keys.shape[0]):
        _remember_value(r, field, category_keys[field])
    _remember_terminal(r, terminal_key, event_time_ms // DAY_MS)
