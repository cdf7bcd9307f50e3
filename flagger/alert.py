"""The message on the alerts topic: a flagged decision and what people ask first about a payment.

A decision alone does not say where it happened. Who reviews, filters or calls somebody needs the
terminal, the channel and the country too, and a label needs the terminal.
"""

from __future__ import annotations

import msgspec

from flagger.errors import BadMessageError
from flagger.wire.limits import MAX_MESSAGE_BYTES
from flagger.wire.messages import Decision

__all__ = ["Alert", "encode_alert", "parse_alert"]


class Alert(Decision, kw_only=True, omit_defaults=True):
    """A decision of review or decline, with the transaction's own words.

    Attributes:
        terminal_id: The transaction's terminal; "" only in alerts of releases before this field.
        currency: As in the transaction; None: it had none. So are the following.
        merchant_category: ISO 18245.
        channel: pos, ecom, atm, moto, contactless.
        country: ISO 3166 alpha-2.
    """

    terminal_id: str = ""
    currency: str | None = None
    merchant_category: str | None = None
    channel: str | None = None
    country: str | None = None


class _Place(msgspec.Struct):
    terminal_id: str = ""
    currency: str | None = None
    merchant_category: str | None = None
    channel: str | None = None
    country: str | None = None


_alerts = msgspec.json.Decoder(Alert)
_places = msgspec.json.Decoder(_Place)


def encode_alert(decision: bytes, transaction: bytes) -> bytes:
    """Return the alert's JSON.

    Args:
        decision: JSON of the `Decision`.
        transaction: JSON of its transaction, already found to be good.
    """
    alert = _alerts.decode(decision)
    place = _places.decode(transaction)
    for name in _Place.__struct_fields__:
        setattr(alert, name, getattr(place, name))
    return msgspec.json.encode(alert)


def parse_alert(raw: bytes) -> Alert:
    """Read one alert.

    Raises:
        BadMessageError: It is none; with the field and the reason.
    """
    # Twice the limit of a transaction: reasons come on top of what it holds.
    if len(raw) > 2 * MAX_MESSAGE_BYTES:
        raise BadMessageError(f"alert has {len(raw):,} bytes; the limit is {2 * MAX_MESSAGE_BYTES}")
    try:
        alert = _alerts.decode(raw)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        raise BadMessageError(reason, field=path.strip("`").lstrip(".") or None) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessageError(f"not valid JSON: {error}") from error
    if not alert.transaction_id:
        raise BadMessageError("is empty", field="transaction_id")
    return alert
