"""JSON as the standard has it: Python's own reader takes NaN and Infinity, others do not."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["read_json"]


def read_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: No JSON, or a number that JSON does not have: NaN, an infinity, or one that is
            too large to be anything else.
    """
    return json.loads(text, parse_constant=_refused, parse_float=_finite)


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no number in JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _refused(digits)
