"""The newest payments of each customer and terminal, flagged or not, for the page of a case.

What was approved is on Kafka only, in the order of its arrival; nobody can look a customer up
there. So the desk's consumer keeps, in Valkey, a short list for each customer and each terminal.
Keys are `ff:pay:c:` or `ff:pay:t:` and the 64-bit key of the id. A list has at most `kept` entries
and expires with its last payment's age: memory is bounded by the customers and terminals that pay.

A crash may put a payment into a list twice; readers see it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import valkey

from flagger.errors import ConfigurationError, StateStoreError
from flagger.features.hashing import key_of
from flagger.state.store import mapped_errors
from flagger.wire.messages import Transaction

__all__ = ["Entity", "Payment", "PaymentHistory", "payment_of"]

Entity = Literal["customer", "terminal"]

_PREFIXES: dict[Entity, bytes] = {"customer": b"ff:pay:c:", "terminal": b"ff:pay:t:"}
_CHUNK = 250
"""Payments of one call: about 1 ms of the server's time, in which nobody else is answered."""
_DAY_S = 86_400
_MEANWHILE = "payments wait on their topic meanwhile"

_ADD = """
for i, name in ipairs(KEYS) do
  redis.call('LPUSH', name, ARGV[i + 2])
  redis.call('LTRIM', name, 0, ARGV[1])
  redis.call('EXPIRE', name, ARGV[2])
end
"""
"""KEYS: lists, one for each value. ARGV: last place that stays, seconds to keep, the values."""


class Payment(NamedTuple):
    """A payment as it is kept: what an analyst sees of it.

    Attributes:
        transaction_id: The transaction's id.
        customer_id: Who paid.
        terminal_id: Where.
        event_time_ms: Epoch milliseconds.
        amount: In units of the currency.
        currency: As in the transaction; "": it had none. So are the following.
        merchant_category: ISO 18245.
        channel: pos, ecom, atm, moto, contactless.
        country: ISO 3166 alpha-2.
    """

    transaction_id: str
    customer_id: str
    terminal_id: str
    event_time_ms: int
    amount: float
    currency: str
    merchant_category: str
    channel: str
    country: str


_decoder = msgspec.msgpack.Decoder(Payment)
_encoder = msgspec.msgpack.Encoder()


def payment_of(transaction: Transaction) -> Payment:
    """Return what is kept of a transaction."""
    return Payment(
        transaction.transaction_id,
        transaction.customer_id,
        transaction.terminal_id,
        transaction.event_time_ms,
        transaction.amount,
        transaction.currency or "",
        transaction.merchant_category or "",
        transaction.channel or "",
        transaction.country or "",
    )


class PaymentHistory:
    """Writes and reads the lists; blocking.

    Args:
        url: valkey://host:port/db
        kept: Newest payments of each customer and terminal, at least 1.
        days: How long a list stays after its last payment came.
        timeout_ms: Limit of one call.

    Raises:
        ConfigurationError: The address is none.
    """

    def __init__(self, url: str, kept: int, days: int, *, timeout_ms: int = 5_000) -> None:
        self._kept = kept
        self._keep_s = days * _DAY_S
        try:
            self._client: Any = valkey.Valkey.from_url(
                url, socket_timeout=timeout_ms / 1000, socket_connect_timeout=timeout_ms / 1000
            )
        except ValueError as error:
            raise ConfigurationError(
                f"FLAGGER_VALKEY_URL is not a Valkey address ({error}); write valkey://host:port/0."
            ) from error
        self._add = self._client.register_script(_ADD)

    def add(self, payments: Sequence[Payment]) -> None:
        """Put payments into the lists of their customers and terminals, the newest last.

        Raises:
            StateStoreError: Some may be in the lists; the same payments may be added again.
        """
        with mapped_errors("take a write", _MEANWHILE):
            for start in range(0, len(payments), _CHUNK):
                names, values = [], []
                for payment in payments[start : start + _CHUNK]:
                    names += [
                        _name("customer", payment.customer_id),
                        _name("terminal", payment.terminal_id),
                    ]
                    values += [_encoder.encode(payment)] * 2
                self._add(keys=names, args=[self._kept - 1, self._keep_s, *values])

    def newest(self, of: Entity, entity_id: str) -> list[Payment]:
        """Return the payments that are kept of a customer or terminal, the newest first.

        Raises:
            StateStoreError: The server does not answer, or another release wrote the list.
        """
        with mapped_errors("answer a read", _MEANWHILE):
            values = self._client.lrange(_name(of, entity_id), 0, -1)
        try:
            found = [_decoder.decode(value) for value in values]
        except msgspec.DecodeError as error:
            raise StateStoreError(
                "Valkey's payments for the desk are of another release; they are replaced as new "
                "ones come."
            ) from error
        # Ids that share a key (one pair in 2^64) share a list, too.
        mine = {p.transaction_id: p for p in found if getattr(p, f"{of}_id") == entity_id}
        return sorted(mine.values(), key=lambda p: -p.event_time_ms)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _name(of: Entity, entity_id: str) -> bytes:
    return _PREFIXES[of] + key_of(entity_id).to_bytes(8, "big")
