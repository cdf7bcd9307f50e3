"""One message at a time: the authority on what a valid transaction or label is.

`decode` reads whole batches with compiled code and hands every message that is not plainly valid
to the functions here, which accept it or say what is wrong with it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import msgspec

from flagger.errors import BadMessageError
from flagger.wire.limits import (
    MAX_AMOUNT,
    MAX_CATEGORY_BYTES,
    MAX_ID_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TIME_AHEAD_MS,
    MIN_EVENT_TIME_MS,
)

__all__ = [
    "SCHEMA_VERSION",
    "Decision",
    "Label",
    "Transaction",
    "parse_label",
    "parse_transaction",
    "to_epoch_ms",
]

SCHEMA_VERSION = 1
"""Version of the transaction's layout that this release reads."""


class Decision(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was decided for one transaction, as it stands on the decisions topic.

    Attributes:
        transaction_id: The transaction's id.
        customer_id: The customer's id.
        event_time: Epoch milliseconds UTC of the transaction.
        amount: Its amount.
        decision: `approve`, `review` or `decline`.
        score: Probability of fraud, 0 to 1; None where no model was asked.
        decision_source: `model`, `rules`, `fallback` or `list`.
        model: Model entry that scored it, for example `fraud_fil`.
        model_version: Version of the model.
        policy_version: Version of the thresholds.
        reasons: Why it was flagged, one line each for a person; empty for approvals by the model.
        reason_codes: The same for machines, in the same order; see `flagger.reasons`.
        feature_hash: XXH64 of the float32 feature row, 16 hex digits.
        latency_ms: From the message's timestamp (or the request's arrival) to the decision.
    """

    transaction_id: str
    customer_id: str
    event_time: int
    amount: float
    decision: str
    decision_source: str
    score: float | None = None
    model: str = ""
    model_version: str = ""
    policy_version: str = ""
    reasons: list[str] = []
    reason_codes: list[str] = []
    feature_hash: str = ""
    latency_ms: float = 0.0


class Transaction(msgspec.Struct, kw_only=True):
    """A payment to be decided; unknown further fields are ignored.

    Attributes:
        transaction_id: Unique id, 1 to 128 bytes.
        event_time: Epoch milliseconds, or RFC 3339 text with a zone; `event_time_ms` reads both.
        customer_id: Who pays, 1 to 128 bytes.
        terminal_id: Where (the merchant's terminal), 1 to 128 bytes.
        amount: In units of the currency; 0 is an account verification, below 0 is refused.
        currency: Optional category.
        merchant_category: Optional category, ISO 18245.
        channel: Optional category: pos, ecom, atm, moto, contactless.
        country: Optional category, ISO 3166 alpha-2.
        decision: Set where the gateway has already decided.
        schema_version: Version of this layout; absent: `SCHEMA_VERSION`.
    """

    transaction_id: str
    event_time: int | str
    customer_id: str
    terminal_id: str
    amount: float
    currency: str | None = None
    merchant_category: str | None = None
    channel: str | None = None
    country: str | None = None
    decision: Decision | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def event_time_ms(self) -> int:
        """The event time in epoch milliseconds."""
        return to_epoch_ms(self.event_time)


class Label(msgspec.Struct, kw_only=True):
    """A confirmed outcome.

    `terminal_id` and `event_time` are those of the labelled transaction: whoever confirms an
    outcome knows them, and the streamer then needs no look-up by id.
    """

    transaction_id: str
    is_fraud: bool
    source: str
    labelled_at: int | str
    terminal_id: str
    event_time: int | str

    @property
    def event_time_ms(self) -> int:
        """The labelled transaction's time in epoch milliseconds."""
        return to_epoch_ms(self.event_time)


_transactions = msgspec.json.Decoder(Transaction)
_labels = msgspec.json.Decoder(Label)


def to_epoch_ms(value: int | str, field: str = "event_time") -> int:
    """Return epoch milliseconds of an integer or of RFC 3339 text; finer digits are cut off.

    Raises:
        BadMessageError: Not RFC 3339 with a zone.
    """
    if isinstance(value, int):
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or len(value) < len("2000-01-01T00:00:00Z"):
        raise BadMessageError(
            "is neither RFC 3339 with a zone (2026-01-31T12:00:00Z) nor epoch milliseconds",
            field=field,
        )
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000


def _decode(decoder: msgspec.json.Decoder[Any], raw: bytes) -> Any:
    if len(raw) > MAX_MESSAGE_BYTES:
        raise BadMessageError(f"message has {len(raw):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}")
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.strip("`").lstrip(".") or None
        raise BadMessageError(reason, field=field) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessageError(f"not valid JSON: {error}") from error


def _check_text(value: str, field: str, limit: int, *, required: bool) -> None:
    size = len(value.encode(errors="surrogatepass"))
    if size > limit:
        raise BadMessageError(f"has {size} bytes; the limit is {limit}", field=field)
    if required and not value:
        raise BadMessageError("is empty", field=field)


def check_time(time_ms: int, field: str, now_ms: int) -> None:
    """Raise BadMessageError unless it lies between the year 2000 and a day from now."""
    if time_ms < MIN_EVENT_TIME_MS:
        raise BadMessageError(
            "lies before the year 2000; is it seconds instead of milliseconds?",
            field=field,
        )
    if time_ms > now_ms + MAX_TIME_AHEAD_MS:
        raise BadMessageError("lies more than a day in the future", field=field)


def check_transaction(transaction: Transaction, now_ms: int) -> None:
    """Raise BadMessageError unless every value is in its range; see `limits`."""
    if transaction.schema_version != SCHEMA_VERSION:
        raise BadMessageError(
            f"{transaction.schema_version} is not known; this release reads {SCHEMA_VERSION}",
            field="schema_version",
        )
    for field in ("transaction_id", "customer_id", "terminal_id"):
        _check_text(getattr(transaction, field), field, MAX_ID_BYTES, required=True)
    for field in ("currency", "merchant_category", "channel", "country"):
        value = getattr(transaction, field)
        if value is not None:
            _check_text(value, field, MAX_CATEGORY_BYTES, required=False)
    check_time(transaction.event_time_ms, "event_time", now_ms)
    if not (math.isfinite(transaction.amount) and 0 <= transaction.amount <= MAX_AMOUNT):
        raise BadMessageError(
            f"{transaction.amount:g} is not between 0 and {MAX_AMOUNT:g}", field="amount"
        )


def parse_transaction(raw: bytes, now_ms: int) -> Transaction:
    """Read one transaction.

    Args:
        raw: The JSON message.
        now_ms: The current time, epoch milliseconds.

    Raises:
        BadMessageError: With the field and the reason.
    """
    transaction: Transaction = _decode(_transactions, raw)
    check_transaction(transaction, now_ms)
    return transaction


def parse_label(raw: bytes, now_ms: int) -> Label:
    """Read one label; raises BadMessageError with the field and the reason."""
    label: Label = _decode(_labels, raw)
    for field in ("transaction_id", "terminal_id"):
        _check_text(getattr(label, field), field, MAX_ID_BYTES, required=True)
    check_time(label.event_time_ms, "event_time", now_ms)
    to_epoch_ms(label.labelled_at, "labelled_at")
    return label
