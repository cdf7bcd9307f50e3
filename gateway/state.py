"""The entity state and the stored decisions in Valkey, read on the event loop.

Entity records are the streamer's: the gateway reads them and never writes them. Stored decisions
are the gateway's own: `ff:d:` and the transaction's 64-bit key, one byte for how far it has come
(`c` claimed: decided, perhaps not in the log yet; `w` written: in the log), then the `Claim`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy.typing as npt
import valkey.asyncio
from valkey.exceptions import ValkeyError

from flagger.errors import ConfigurationError, StateStoreError
from flagger.features import TransactionBatch
from flagger.state.store import decode_records, encode_keys
from gateway.answers import Claim

__all__ = ["DECISION_TTL_S", "AsyncStateStore", "SeenState", "StoredClaim"]

DECISION_TTL_S = 24 * 3_600
"""How long a repeat gets the first answer: payment retries come within minutes, batch re-runs
within a day. At about 250 bytes each, 100 requests/s keep 2.2 GB."""
_PREFIX = b"ff:d:"
_CLAIMED, _WRITTEN = b"c", b"w"

_claims = msgspec.msgpack.Decoder(Claim)


@dataclass(frozen=True, slots=True)
class StoredClaim:
    """A decision made earlier.

    Attributes:
        claim: The decision.
        written: True if the broker has acknowledged it in the log.
    """

    claim: Claim
    written: bool


@dataclass(frozen=True, slots=True)
class SeenState:
    """What Valkey knows about one transaction.

    Attributes:
        customers: CUSTOMER records, 0 or 1.
        terminals: TERMINAL records, 0 or 1.
        stored: The decision made earlier under this transaction id, if any.
    """

    customers: npt.NDArray[Any]
    terminals: npt.NDArray[Any]
    stored: StoredClaim | None


def _decision_key(batch: TransactionBatch) -> bytes:
    return _PREFIX + batch.transaction_key.astype(">u8").tobytes()


def _stored(value: bytes | None) -> StoredClaim | None:
    if value is None:
        return None
    try:
        return StoredClaim(_claims.decode(value[1:]), value[:1] == _WRITTEN)
    except msgspec.DecodeError as error:
        raise StateStoreError(
            "A stored decision (ff:d:*) in Valkey cannot be read; another release wrote it. Use "
            "another Valkey database, or wait a day: stored decisions expire."
        ) from error


@asynccontextmanager
async def _limited(what: str, timeout_ms: float) -> AsyncIterator[None]:
    """Limit a call's time and turn its errors into ours, with the cause kept."""
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            yield
    except TimeoutError as error:
        raise StateStoreError(f"Valkey did not {what} within {timeout_ms:.0f} ms.") from error
    except (ValkeyError, OSError) as error:
        raise StateStoreError(
            f"Valkey did not {what}: {error}. Check FLAGGER_VALKEY_URL and the server."
        ) from error


class AsyncStateStore:
    """Reads entity records; reads and writes stored decisions. All calls raise StateStoreError.

    Args:
        url: valkey://host:port/db; nothing is connected before the first call.
    """

    def __init__(self, url: str) -> None:
        try:
            self._client: Any = valkey.asyncio.Valkey.from_url(url)
        except ValueError as error:
            raise ConfigurationError(
                f"FLAGGER_VALKEY_URL is not a Valkey address ({error}); write valkey://host:port/0."
            ) from error

    async def read(self, batch: TransactionBatch, timeout_ms: float) -> SeenState:
        """Return what is known about the one transaction of `batch`, in one round trip."""
        names = [
            *encode_keys("customer", batch.customer_key),
            *encode_keys("terminal", batch.terminal_key),
            _decision_key(batch),
        ]
        async with _limited("answer a read", timeout_ms):
            values: list[bytes | None] = await self._client.mget(names)
        return SeenState(
            customers=decode_records("customer", values[:1]),
            terminals=decode_records("terminal", values[1:2]),
            stored=_stored(values[2]),
        )

    async def read_claim(self, batch: TransactionBatch, timeout_ms: float) -> StoredClaim | None:
        """Return the stored decision alone."""
        async with _limited("answer a read", timeout_ms):
            return _stored(await self._client.get(_decision_key(batch)))

    async def claim(
        self, batch: TransactionBatch, claim: Claim, timeout_ms: float
    ) -> StoredClaim | None:
        """Store a decision unless there is one; return the one that was there first."""
        value = _CLAIMED + msgspec.msgpack.encode(claim)
        async with _limited("store a decision", timeout_ms):
            found: bytes | None = await self._client.set(
                _decision_key(batch), value, ex=DECISION_TTL_S, nx=True, get=True
            )
        return _stored(found)

    async def mark_written(self, batch: TransactionBatch, claim: Claim, timeout_ms: float) -> None:
        """Store that the log holds the decision; a repeat is then answered without a write.

        Also where `claim` has failed before: what is in the log is the decision from now on.
        """
        value = _WRITTEN + msgspec.msgpack.encode(claim)
        async with _limited("store a decision", timeout_ms):
            await self._client.set(_decision_key(batch), value, ex=DECISION_TTL_S)

    async def ping(self, timeout_ms: float) -> None:
        """Raise StateStoreError unless the server answers."""
        async with _limited("answer a ping", timeout_ms):
            await self._client.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()
