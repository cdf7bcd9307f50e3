"""Entity records in Valkey: the same bytes as in memory, one value per entity.

Keys are `ff:{kind}:` and the entity's 64-bit key, so that no customer id is stored. A record
carries the log offsets that it includes: writing it twice does no harm, and a write that stopped
half way needs no repair.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import valkey

from flagger.errors import ConfigurationError, StateStoreError
from flagger.state.records import CUSTOMER, STATE_VERSION, TERMINAL

__all__ = ["KINDS", "Kind", "StateStore", "decode_records", "encode_keys"]

Kind = Literal["customer", "terminal"]
KINDS: dict[Kind, tuple[bytes, np.dtype[Any]]] = {
    "customer": (b"ff:c:", CUSTOMER),
    "terminal": (b"ff:t:", TERMINAL),
}
MAX_RECORDS_PER_CALL = 2_000
"""About 2 MB per command: the server answers others in between."""
_SCAN_COUNT = 10_000


def encode_keys(kind: Kind, keys: npt.NDArray[np.uint64]) -> list[bytes]:
    """Return the Valkey keys of entity keys."""
    prefix = KINDS[kind][0]
    raw = keys.astype(">u8").tobytes()
    return [prefix + raw[i : i + 8] for i in range(0, len(raw), 8)]


def decode_records(kind: Kind, values: list[bytes | None]) -> npt.NDArray[Any]:
    """Return the records among the values; absent ones (None) are left out.

    Raises:
        StateStoreError: A value is not a record of this version.
    """
    dtype = KINDS[kind][1]
    found = [value for value in values if value is not None]
    for value in found:
        if len(value) != dtype.itemsize:
            raise StateStoreError(
                f"A {kind} record in the state store has {len(value)} bytes; this release reads "
                f"{dtype.itemsize}. Another release wrote it: use another Valkey database, or "
                f"rebuild the state by streaming the log from its start."
            )
    records: npt.NDArray[Any] = np.frombuffer(b"".join(found), dtype=dtype)
    wrong = records["version"] != STATE_VERSION
    if wrong.any():
        raise StateStoreError(
            f"A {kind} record in the state store has version {records['version'][wrong][0]}; this "
            f"release reads version {STATE_VERSION}. Use another Valkey database, or rebuild the "
            f"state by streaming the log from its start."
        )
    return records


@contextmanager
def _mapped(what: str) -> Iterator[None]:
    """Turn the client library's errors into ours, with the cause kept."""
    try:
        yield
    except valkey.exceptions.ValkeyError as error:
        raise StateStoreError(
            f"Valkey did not {what}: {error}. Check FLAGGER_VALKEY_URL and the server; nothing is "
            f"lost, the log is read again from the last written state."
        ) from error


class StateStore:
    """Blocking reads and writes of entity records.

    Args:
        url: valkey://host:port/db
        timeout_ms: Limit of one command.
    """

    def __init__(self, url: str, *, timeout_ms: int = 5_000) -> None:
        try:
            self._client: Any = valkey.Valkey.from_url(
                url,
                socket_timeout=timeout_ms / 1000,
                socket_connect_timeout=timeout_ms / 1000,
            )
        except ValueError as error:
            raise ConfigurationError(
                f"FLAGGER_VALKEY_URL is not a Valkey address ({error}); write valkey://host:port/0."
            ) from error

    def read(self, kind: Kind, keys: npt.NDArray[np.uint64]) -> npt.NDArray[Any]:
        """Return the records that exist among the keys, in their order."""
        values: list[bytes | None] = []
        with _mapped("answer a read"):
            for start in range(0, len(keys), MAX_RECORDS_PER_CALL):
                chunk = encode_keys(kind, keys[start : start + MAX_RECORDS_PER_CALL])
                values += self._client.mget(chunk)
        return decode_records(kind, values)

    def read_all(self, kind: Kind) -> npt.NDArray[Any]:
        """Return all records of a kind; for terminals, which every streamer holds whole."""
        prefix = KINDS[kind][0]
        with _mapped("answer a scan"):
            found = list(self._client.scan_iter(match=prefix + b"*", count=_SCAN_COUNT))
            values: list[bytes | None] = []
            for start in range(0, len(found), MAX_RECORDS_PER_CALL):
                values += self._client.mget(found[start : start + MAX_RECORDS_PER_CALL])
        return decode_records(kind, values)

    def write(self, kind: Kind, records: npt.NDArray[Any]) -> None:
        """Write records under their keys."""
        size = records.dtype.itemsize
        raw = records.tobytes()
        names = encode_keys(kind, records["key"])
        with _mapped("take a write"):
            for start in range(0, len(names), MAX_RECORDS_PER_CALL):
                stop = min(start + MAX_RECORDS_PER_CALL, len(names))
                self._client.mset(
                    {names[i]: raw[i * size : (i + 1) * size] for i in range(start, stop)}
                )

    def read_marks(self, name: str) -> dict[str, int]:
        """Return a named set of numbers (offsets up to which the records are written)."""
        with _mapped("answer a read"):
            found: dict[bytes, bytes] = self._client.hgetall(f"ff:marks:{name}")
        return {key.decode(): int(value) for key, value in found.items()}

    def write_marks(self, name: str, marks: dict[str, int]) -> None:
        """Store numbers under a name; write them after the records that they speak of."""
        if marks:
            with _mapped("take a write"):
                self._client.hset(f"ff:marks:{name}", mapping={k: str(v) for k, v in marks.items()})

    def ping(self) -> None:
        """Raise StateStoreError unless the server answers."""
        with _mapped("answer a ping"):
            self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
