"""Limits of the wire format, each with its reason."""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = [
    "MAX_AMOUNT",
    "MAX_CATEGORY_BYTES",
    "MAX_ID_BYTES",
    "MAX_MESSAGE_BYTES",
    "MAX_TIME_AHEAD_MS",
    "MIN_EVENT_TIME_MS",
]

MAX_ID_BYTES = 128
"""Longest id in UTF-8 bytes: room for UUIDs, tokens and prefixes, but not for a document."""
MAX_CATEGORY_BYTES = 64
"""Longest category in UTF-8 bytes."""
MAX_AMOUNT = 1e9
"""Above this an amount is taken for a mistake of units."""
MAX_MESSAGE_BYTES = 64 * 1024
"""A transaction takes 200 to 500 bytes; far larger ones go to the dead-letter topic unread."""
MIN_EVENT_TIME_MS = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp() * 1000)
"""Before this an event time is taken for a mistake of units (seconds instead of milliseconds)."""
MAX_TIME_AHEAD_MS = 24 * 3_600_000
"""How far an event time may lie ahead of our clock: more would block the customer's state."""
