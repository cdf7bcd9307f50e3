"""Customer segments: the lists of customers that alert rules may name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flagger.errors import ConfigurationError
from review.alerts.rules import AlertRules

__all__ = ["MAX_SEGMENT_CUSTOMERS", "Segments", "read_segments"]

Segments = Mapping[str, frozenset[str]]
"""Name -> ids of its customers."""
MAX_SEGMENT_CUSTOMERS = 1_000_000
"""Most customers of all segments together: about 100 MB."""


def read_segments(rules: AlertRules) -> Segments:
    """Read the customers of every segment in the file: one id a line, empty lines left out.

    Raises:
        ConfigurationError: A list is not readable, is empty, or they are too long together.
    """
    found: dict[str, frozenset[str]] = {}
    total = 0
    for name, segment in rules.segment.items():
        try:
            with Path(segment.customers_file).open(encoding="utf-8") as file:
                customers = frozenset(line.strip() for line in file) - {""}
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"segment {name}: {segment.customers_file} cannot be read "
                f"({type(error).__name__}). It holds one customer id a line."
            ) from error
        if not customers:
            raise ConfigurationError(
                f"segment {name}: {segment.customers_file} names no customer, so no alert would "
                f"ever match."
            )
        total += len(customers)
        if total > MAX_SEGMENT_CUSTOMERS:
            raise ConfigurationError(
                f"segment {name}: the segments have more than {MAX_SEGMENT_CUSTOMERS:,} customers "
                f"together. Name smaller groups."
            )
        found[name] = customers
    return found
