"""Compiled scanner for the plain form of a transaction's JSON. Kernels only.

It accepts a strict subset of what `messages.parse_transaction` accepts, with the same result, and
says SLOW to everything else: escapes, bytes outside ASCII, nested values, RFC 3339 text, numbers of
more than 15 digits, and every mistake. Whatever it accepts is valid; a property test compares both.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.features.hashing import hash_span
from flagger.wire.limits import MAX_AMOUNT, MAX_CATEGORY_BYTES, MAX_ID_BYTES

__all__ = ["SPANS", "scan_transactions"]

SPANS = 5
"""Spans per message: transaction, customer and terminal id (without quotes), amount, time."""

_QUOTE, _BACKSLASH, _COLON, _COMMA = 34, 92, 58, 44
_OPEN, _CLOSE, _MINUS, _DOT, _ZERO, _NINE = 123, 125, 45, 46, 48, 57
_FIELDS = (
    b"transaction_id",
    b"customer_id",
    b"terminal_id",
    b"amount",
    b"event_time",
    b"currency",
    b"merchant_category",
    b"channel",
    b"country",
    b"decision",
    b"schema_version",
)
_NAMES = np.frombuffer(b"".join(_FIELDS), dtype=np.uint8).copy()
_NAME_STARTS = np.cumsum([0] + [len(f) for f in _FIELDS]).astype(np.int64)
_AMOUNT, _EVENT_TIME, _FIRST_CATEGORY, _DECISION, _VERSION, _UNKNOWN = 3, 4, 5, 9, 10, 11
_REQUIRED = 0b11111
_POWERS_OF_TEN = np.array([10.0**i for i in range(23)])


@kernel
def _skip_space(data: npt.NDArray[np.uint8], i: int, end: int) -> int:
    while i < end and (data[i] == 32 or data[i] == 10 or data[i] == 13 or data[i] == 9):
        i += 1
    return i


@kernel
def _string_end(data: npt.NDArray[np.uint8], i: int, end: int) -> int:
    """Return the place of the closing quote of a plain ASCII string, or -1."""
    while i < end:
        c = data[i]
        if c == _QUOTE:
            return i
        if c == _BACKSLASH or c < 32 or c > 126:
            return -1
        i += 1
    return -1


@kernel
def _field_number(data: npt.NDArray[np.uint8], start: int, end: int) -> int:
    length = end - start
    for f in range(_UNKNOWN):
        first = _NAME_STARTS[f]
        if _NAME_STARTS[f + 1] - first != length or _NAMES[first] != data[start]:
            continue
        same = True
        for k in range(1, length):
            if _NAMES[first + k] != data[start + k]:
                same = False
                break
        if same:
            return f
    return _UNKNOWN


@kernel
def _number(data: npt.NDArray[np.uint8], i: int, end: int) -> tuple[int, float, bool]:
    """Read digits with an optional fraction, at most 15 digits, no sign, no exponent.

    With at most 15 digits and a power of ten up to 10^22 the quotient is correctly rounded
    (W. D. Clinger, "How to read floating point numbers accurately", 1990), so it equals Python's.
    Returns the place after the number (-1: not plain), its value, and whether it is whole.
    """
    start = i
    mantissa = 0
    digits = 0
    while i < end and _ZERO <= data[i] <= _NINE:
        mantissa = mantissa * 10 + (data[i] - _ZERO)
        digits += 1
        i += 1
    if digits == 0 or (digits > 1 and data[start] == _ZERO):
        return -1, 0.0, False
    places = 0
    if i < end and data[i] == _DOT:
        i += 1
        while i < end and _ZERO <= data[i] <= _NINE:
            mantissa = mantissa * 10 + (data[i] - _ZERO)
            digits += 1
            places += 1
            i += 1
        if places == 0:
            return -1, 0.0, False
    if digits > 15 or (i < end and (data[i] == 69 or data[i] == 101)):
        return -1, 0.0, False
    return i, mantissa / _POWERS_OF_TEN[places], places == 0


@kernel
def _literal_end(data: npt.NDArray[np.uint8], i: int, end: int) -> tuple[int, bool]:
    """Return the place after true, false or null (-1: none of them) and whether it is null."""
    if i + 4 <= end and data[i] == 110 and data[i + 1] == 117:
        if data[i + 2] == 108 and data[i + 3] == 108:
            return i + 4, True
    elif i + 4 <= end and data[i] == 116 and data[i + 1] == 114:
        if data[i + 2] == 117 and data[i + 3] == 101:
            return i + 4, False
    elif i + 5 <= end and data[i] == 102 and data[i + 1] == 97:  # noqa: SIM102
        if data[i + 2] == 108 and data[i + 3] == 115 and data[i + 4] == 101:
            return i + 5, False
    return -1, False


@kernel
def _scan_string(
    data: npt.NDArray[np.uint8],
    i: int,
    end: int,
    field: int,
    spans: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
) -> int:
    """Read the string that opens at `i` into its key; return the place after it, or -1."""
    close = _string_end(data, i + 1, end)
    size = close - i - 1
    if close < 0 or field in (_AMOUNT, _EVENT_TIME, _DECISION, _VERSION):
        return -1
    if field < _AMOUNT:
        if size == 0 or size > MAX_ID_BYTES:
            return -1
        keys[field] = hash_span(data, i + 1, close)
        spans[2 * field] = i + 1
        spans[2 * field + 1] = close
    elif field < _DECISION:
        if size > MAX_CATEGORY_BYTES:
            return -1
        keys[field - 2] = hash_span(data, i + 1, close) if size > 0 else np.uint64(0)
    return close + 1


@kernel
def _scan_value(
    data: npt.NDArray[np.uint8],
    i: int,
    end: int,
    field: int,
    time_range_ms: tuple[int, int],
    spans: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    numbers: npt.NDArray[np.float64],
) -> int:
    """Read one value of one message; return the place after it, or -1.

    `numbers` receives the amount and the event time; up to 15 digits are exact in float64.
    """
    if data[i] == _QUOTE:
        return _scan_string(data, i, end, field, spans, keys)
    if not _ZERO <= data[i] <= _NINE:
        after, null = _literal_end(data, i, end)
        if null and _FIRST_CATEGORY <= field < _DECISION:
            keys[field - 2] = 0
            return after
        return after if field == _UNKNOWN else -1
    after, value, whole = _number(data, i, end)
    if after < 0 or field == _UNKNOWN:
        return after
    if field == _AMOUNT and value <= MAX_AMOUNT:
        numbers[0] = value
    elif field == _EVENT_TIME and whole and time_range_ms[0] <= value <= time_range_ms[1]:
        numbers[1] = value
    else:
        return -1
    spans[2 * field] = i
    spans[2 * field + 1] = after
    return after


@kernel
def _scan_one(
    data: npt.NDArray[np.uint8],
    i: int,
    end: int,
    time_range_ms: tuple[int, int],
    spans: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    numbers: npt.NDArray[np.float64],
) -> bool:
    i = _skip_space(data, i, end)
    if i >= end or data[i] != _OPEN:
        return False
    found = 0
    i = _skip_space(data, i + 1, end)
    while i < end and data[i] == _QUOTE:
        close = _string_end(data, i + 1, end)
        if close < 0:
            return False
        field = _field_number(data, i + 1, close)
        i = _skip_space(data, close + 1, end)
        if i >= end or data[i] != _COLON:
            return False
        i = _skip_space(data, i + 1, end)
        if i >= end:
            return False
        i = _scan_value(data, i, end, field, time_range_ms, spans, keys, numbers)
        if i < 0:
            return False
        if field < _FIRST_CATEGORY:
            found |= 1 << field
        i = _skip_space(data, i, end)
        if i >= end:
            return False
        if data[i] == _CLOSE:
            return found == _REQUIRED and _skip_space(data, i + 1, end) == end
        if data[i] != _COMMA:
            return False
        i = _skip_space(data, i + 1, end)
    return False


@kernel
def scan_transactions(
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    time_range_ms: tuple[int, int],
    spans: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint64],
    times_ms: npt.NDArray[np.int64],
    amounts: npt.NDArray[np.float64],
    plain: npt.NDArray[np.bool_],
) -> None:
    """Read n messages `data[starts[i]:starts[i + 1]]` into columns.

    Args:
        data: All messages, uint8.
        starts: int64 [n + 1].
        time_range_ms: First and last event time that is accepted.
        spans: Output, int64 [n, 2 * SPANS]: start and end of each span in `data`.
        keys: Output, uint64 [n, 7]: transaction, customer, terminal, then the four categories;
            must be zero on entry.
        times_ms: Output, int64 [n].
        amounts: Output, float64 [n].
        plain: Output, bool [n]; where False the other outputs of the row mean nothing.
    """
    numbers = np.zeros(2)
    for row in range(plain.shape[0]):
        plain[row] = _scan_one(
            data, starts[row], starts[row + 1], time_range_ms, spans[row], keys[row], numbers
        )
        amounts[row] = numbers[0]
        times_ms[row] = int(numbers[1])
