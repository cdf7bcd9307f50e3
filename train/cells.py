"""From a file's column to a canonical one: convert, check, and name the first bad cell.

Everything works on whole arrow arrays. Only where a conversion fails, the first bad cell is
looked for by bisection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from flagger.errors import DataError
from flagger.wire.limits import MAX_AMOUNT, MAX_CATEGORY_BYTES, MAX_ID_BYTES, MIN_EVENT_TIME_MS

__all__ = [
    "CellContext",
    "TimeUnit",
    "to_amounts",
    "to_categories",
    "to_event_times",
    "to_ids",
    "to_labels",
]

TimeUnit = Literal["s", "ms", "us"]
"""Unit of event times that are whole numbers."""

_TIME = pa.timestamp("ms", "UTC")
_MAX_EVENT_TIME_MS = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1000)
"""After this an event time is taken for a mistake of units (microseconds or finer)."""


@dataclass(frozen=True)
class CellContext:
    """Where an array comes from, for the error that may be due.

    Attributes:
        file: Name of the file.
        column: Name of the column in the file.
        first_row: Number of the array's first row among the data rows, from 1.
    """

    file: str
    column: str
    first_row: int

    def refuse(self, array: pa.Array, place: int, problem: str, remedy: str) -> NoReturn:
        """Raise DataError for the cell at `place` of the array."""
        raise DataError(
            file=self.file,
            row=self.first_row + place,
            column=self.column,
            value=array[place].as_py() if array[place].is_valid else None,
            problem=problem,
            remedy=remedy,
        )

    def require(self, good: pa.Array, array: pa.Array, problem: str, remedy: str) -> None:
        """Raise DataError for the first cell where `good` is false or null."""
        place = pc.index(pc.fill_null(good, False), False).as_py()
        if place >= 0:
            self.refuse(array, place, problem, remedy)

    def convert(
        self, array: pa.Array, conversion: Callable[[pa.Array], pa.Array], problem: str, remedy: str
    ) -> pa.Array:
        """Return the converted array; raise DataError for the first cell that does not convert."""
        try:
            return conversion(array)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            low, high = 0, len(array)  # the first `low` cells convert, the first `high` do not
            while high - low > 1:
                middle = (low + high) // 2
                try:
                    conversion(array.slice(0, middle))
                    low = middle
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                    high = middle
            self.refuse(array, high - 1, problem, remedy)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _as_text(array: pa.Array, context: CellContext) -> pa.Array:
    """Return text or whole numbers as `string`; other types are refused."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not (
        _is_text(array.type) or pa.types.is_integer(array.type) or pa.types.is_null(array.type)
    ):
        raise DataError(
            file=context.file,
            column=context.column,
            problem=f"has the type {array.type}",
            remedy="Store it as text or as whole numbers",
        )
    return array.cast(pa.string())


def _require_length(text: pa.Array, limit: int, context: CellContext) -> None:
    size = pc.fill_null(pc.binary_length(text), 0)
    context.require(
        pc.less_equal(size, limit),
        text,
        f"is longer than {limit} bytes",
        "Is this the right column? Name the columns with --columns",
    )


def to_ids(array: pa.Array, context: CellContext) -> pa.Array:
    """Return ids as `string` without nulls; empty and over-long ones are refused."""
    text = _as_text(array, context)
    context.require(
        pc.greater(pc.binary_length(text), 0),
        array,
        "the id is missing",
        "Each row needs one: fill it in or remove the row",
    )
    _require_length(text, MAX_ID_BYTES, context)
    return text


def to_categories(array: pa.Array, context: CellContext) -> pa.Array:
    """Return categories as `string`; empty ones become null."""
    text = _as_text(array, context)
    _require_length(text, MAX_CATEGORY_BYTES, context)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def to_amounts(array: pa.Array, context: CellContext) -> pa.Array:
    """Return amounts as float64 without nulls, each between 0 and `MAX_AMOUNT`."""
    remedy = f"Amounts are numbers from 0 to {MAX_AMOUNT:,.0f}, with a decimal point"
    if pa.types.is_boolean(array.type) or pa.types.is_temporal(array.type):
        raise DataError(
            file=context.file,
            column=context.column,
            problem=f"has the type {array.type}",
            remedy=remedy,
        )
    amounts = context.convert(array, lambda a: a.cast(pa.float64()), "is not a number", remedy)
    inside = pc.and_(pc.greater_equal(amounts, 0.0), pc.less_equal(amounts, MAX_AMOUNT))
    context.require(inside, array, "the amount is missing or out of range", remedy)
    return amounts


def to_labels(array: pa.Array, context: CellContext) -> pa.Array:
    """Return outcomes as bool; null where unknown."""
    remedy = "Write true or false, 1 or 0, or leave it empty where the outcome is unknown"
    labels = context.convert(array, lambda a: a.cast(pa.bool_()), "is not true or false", remedy)
    if not (pa.types.is_boolean(array.type) or _is_text(array.type)):
        numbers = array.cast(pa.float64())
        good = pc.is_in(numbers, value_set=pa.array([0.0, 1.0, None]))
        context.require(good, array, "is not 0 or 1", remedy)
    return labels


def _text_times(text: pa.Array, zone: str | None, unit: TimeUnit) -> pa.Array:
    """Read RFC 3339 text and whole numbers of `unit`, mixed."""
    whole = pc.match_substring_regex(text, r"^-?\d+$")
    nothing = pa.scalar(None, pa.string())
    numbers = pc.if_else(whole, text, nothing).cast(pa.int64())
    written = pc.if_else(whole, nothing, text)
    counted = _to_utc_ms(numbers.cast(pa.timestamp(unit, "UTC")))
    if zone is None:
        return pc.coalesce(counted, _to_utc_ms(written.cast(pa.timestamp("ns", "UTC"))))
    names_one = pc.match_substring_regex(written, r"(?:Z|[+-]\d{2}(?::?\d{2})?)$")
    names_one = pc.and_(names_one, pc.match_substring(written, ":"))  # 2026-01-31 ends like one
    told = pc.if_else(names_one, written, nothing).cast(pa.timestamp("ns", "UTC"))
    untold = pc.if_else(names_one, nothing, written).cast(pa.timestamp("ns"))
    return pc.coalesce(counted, _to_utc_ms(told), _to_utc_ms(pc.assume_timezone(untold, zone)))


def _to_utc_ms(times: pa.Array) -> pa.Array:
    return times.cast(_TIME, safe=False)  # finer digits are cut off, as in the wire format


def to_event_times(
    array: pa.Array, context: CellContext, *, zone: str | None = None, unit: TimeUnit = "ms"
) -> pa.Array:
    """Return times as timestamp[ms, UTC] without nulls.

    Args:
        array: Timestamps, RFC 3339 text, or whole numbers since 1970.
        context: Where it comes from.
        zone: Zone of times that name none; None: such times are refused.
        unit: Unit of whole numbers, `s`, `ms` or `us`.
    """
    remedy = (
        "Write RFC 3339 with a zone (2026-01-31T12:00:00Z) or epoch milliseconds, or give zone "
        "and unit under [event_time] in the file for --columns"
    )
    kind = array.type
    if pa.types.is_timestamp(kind):
        if kind.tz is None and zone is None:
            context.refuse(array, 0, "the time names no zone", remedy)
        if kind.tz is None:
            moments = context.convert(
                array,
                lambda a: pc.assume_timezone(a, zone),
                f"is none or two in {zone}, as the clock was changed",
                remedy,
            )
        else:
            moments = array
        times = _to_utc_ms(moments)
    elif pa.types.is_integer(kind):
        times = _to_utc_ms(array.cast(pa.int64()).cast(pa.timestamp(unit, "UTC")))
    else:
        times = context.convert(
            _as_text(array, context),
            lambda a: _text_times(a, zone, unit),
            "is not a time with a zone"
            if zone is None
            else f"is no time, or none or two in {zone}, as the clock was changed",
            remedy,
        )
    epoch: Any = times.cast(pa.int64())
    inside = pc.and_(pc.greater_equal(epoch, MIN_EVENT_TIME_MS), pc.less(epoch, _MAX_EVENT_TIME_MS))
    context.require(
        inside,
        array,
        "the time is missing, or outside the years 2000 to 2199: is its unit another one",
        remedy,
    )
    return times
