"""Entity state: fixed-size binary records, the same bytes in memory and in Valkey.

Rings hold one slot per time bucket: bucket b lives in slot b % length, and `*_head` is the newest
bucket seen, so the slots hold the buckets (head - length, head]. A bucket is
floor(event_time_ms / bucket length), UTC.
"""

from __future__ import annotations

import numpy as np

__all__ = [
    "CUSTOMER",
    "DAY_BUCKETS",
    "DAY_MS",
    "FIVE_MINUTES_MS",
    "FIVE_MINUTE_BUCKETS",
    "HOUR_BUCKETS",
    "HOUR_MS",
    "ID_RING",
    "LABEL_RING",
    "NEW_BUCKET",
    "SEEN_TERMINALS",
    "SEEN_VALUES",
    "STATE_VERSION",
    "TERMINAL",
    "TERMINAL_BUCKETS",
    "TERMINAL_BUCKET_MS",
]

STATE_VERSION = 1
"""Layout version, first field of each record; other versions are refused when read."""

FIVE_MINUTES_MS = 5 * 60_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
TERMINAL_BUCKET_MS = 12 * HOUR_MS

FIVE_MINUTE_BUCKETS = 12
HOUR_BUCKETS = 24
DAY_BUCKETS = 30
TERMINAL_BUCKETS = 80
"""40 days: 30 days of window + 7 days of label delay + 3 days for transactions out of order."""

ID_RING = 12
"""Transaction ids remembered per customer: a repeat within the last 12 is recognised."""
LABEL_RING = 16
"""Labels remembered per terminal: a repeat or correction within the last 16 is recognised."""
SEEN_TERMINALS = 16
"""Terminals remembered per customer; the least recently seen one makes room."""
SEEN_VALUES = 10
"""Values remembered per customer and categorical field; the oldest one makes room."""

NEW_BUCKET = -(2**31)
"""Head of a ring that has never been written."""

CUSTOMER = np.dtype(
    [
        ("key", "u8"),
        ("version", "u2"),
        ("partition", "i2"),  # of the transactions topic; -1: not from a log
        ("id_position", "u1"),
        ("seen_position", "u1", (4,)),
        ("applied_offset", "i8"),  # next offset of `partition` to apply to this record
        ("first_event_ms", "i8"),
        ("last_event_ms", "i8"),
        ("amount_mean", "f8"),  # Welford's running mean and sum of squared deviations, all time
        ("amount_m2", "f8"),
        ("profile_sum", "f8"),  # amounts of the days that have left the day ring
        ("ids", "u8", (ID_RING,)),
        ("count", "u4"),  # transactions, all time
        ("profile_count", "u4"),
        ("profile_max", "f4"),
        ("five_minute_head", "i4"),
        ("hour_head", "i4"),
        ("day_head", "i4"),
        ("five_minute_sum", "f4", (FIVE_MINUTE_BUCKETS,)),
        ("hour_sum", "f4", (HOUR_BUCKETS,)),
        ("day_sum", "f4", (DAY_BUCKETS,)),
        ("day_max", "f4", (DAY_BUCKETS,)),
        ("seen_values", "u4", (4, SEEN_VALUES)),
        ("seen_terminals", "u4", (SEEN_TERMINALS,)),
        ("seen_terminal_count", "u2", (SEEN_TERMINALS,)),
        ("seen_terminal_day", "u2", (SEEN_TERMINALS,)),
        ("five_minute_count", "u2", (FIVE_MINUTE_BUCKETS,)),
        ("hour_count", "u2", (HOUR_BUCKETS,)),
        ("day_count", "u2", (DAY_BUCKETS,)),
        ("three_hour_count", "u2", (8,)),  # transactions by time of day, all time, saturating
    ],
    align=True,
)
"""One customer; at most 1 KiB."""

TERMINAL = np.dtype(
    [
        ("key", "u8"),
        ("version", "u2"),
        ("label_position", "u1"),
        ("activity_offset", "i8"),  # next offset of the activity log to apply to this record
        ("label_offset", "i8"),  # next offset of the labels log to apply to this record
        ("labels", "u8", (LABEL_RING,)),  # transaction key with the outcome as its lowest bit
        ("head", "i4"),
        ("first_fraud_bucket", "i4"),
        ("counts", "u4", (TERMINAL_BUCKETS,)),
        ("frauds", "u4", (TERMINAL_BUCKETS,)),
    ],
    align=True,
)
"""One terminal: transactions and confirmed frauds by half day."""

if CUSTOMER.itemsize > 1024:  # pragma: no cover - a law of the design, checked at import
    raise ImportError(f"customer record is {CUSTOMER.itemsize} bytes; the limit is 1024")
