"""Entity records in Valkey: the same bytes as in memory, one value per entity.

Keys are `ff:{kind}:` and the entity's 64-bit key, so that no customer id is stored. A record
carries the log offsets that it includes: writing it twice does no harm, and a write that stopped
half way needs no repair.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import valkey

from flagger.errors import ConfigurationError, StateLostError, StateStoreError
from flagger.state.records import CUSTOMER, STATE_VERSION, TERMINAL

__all__ = ["KINDS", "Claim", "Kind", "StateStore", "decode_records", "encode_keys", "mapped_errors"]

Kind = Literal["customer", "terminal"]
KINDS: dict[Kind, tuple[bytes, np.dtype[Any]]] = {
    "customer": (b"ff:c:", CUSTOMER),
    "terminal": (b"ff:t:", TERMINAL),
}
MAX_RECORDS_PER_CALL = 2_000
"""About 2 MB per command: the server answers others in between."""
_SCAN_COUNT = 10_000
_MEANWHILE = "nothing is lost, the log is read again from the last written state"


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
def mapped_errors(what: str, meanwhile: str = _MEANWHILE) -> Iterator[None]:
    """Turn the client library's errors into ours, with the cause kept.

    Args:
        what: What Valkey did not do.
        meanwhile: What becomes of the data until it does.
    """
    try:
        yield
    except valkey.exceptions.ValkeyError as error:
        raise StateStoreError(
            f"Valkey did not {what}: {error}. Check FLAGGER_VALKEY_URL and the server; {meanwhile}."
        ) from error


@dataclass(slots=True)
class Claim:
    """The right to write the state of some partitions; whoever claims them later takes it away.

    Each write changes the claim's entry in the store, within the same transaction. An entry that is
    not what was written last means that somebody else has the partitions now, or that the server
    came back without the latest writes: no write goes through any more, and no read.

    Attributes:
        names: Keys of the entries, one for each partition.
        token: Tells this claim from all others.
        confirmed: Number of the last write that the server has acknowledged.
        attempted: Number of the last write that was sent; it may or may not be in the store.
    """

    names: list[bytes]
    token: str
    confirmed: int = 0
    attempted: int = 0

    def entry(self, number: int) -> bytes:
        """Return what the store holds after the write with this number."""
        return f"{self.token}:{number}".encode()

    def require(self, found: list[bytes | None], since: int) -> None:
        """Raise StateLostError unless all entries are of the write `since` or a later one."""
        good = {self.entry(number) for number in range(since, self.attempted + 1)}
        for name, entry in zip(self.names, found, strict=True):
            if entry not in good:
                what = "nothing is there" if entry is None else "it is there no more"
                raise StateLostError(
                    f"The state store no longer holds what this streamer wrote under "
                    f"{name.decode()} ({what}): another streamer has taken its partitions over, or "
                    f"Valkey came back without its latest data. Start this streamer again: it "
                    f"reads the log again from what is stored, from its beginning if need be."
                )


def _set_all(values: dict[bytes, bytes], client: Any) -> None:
    client.mset(values)


def _marks(client: Any, name: str) -> dict[str, int]:
    found: dict[bytes, bytes] = client.hgetall(f"ff:marks:{name}")
    return {key.decode(): int(value) for key, value in found.items()}


def _all_records(client: Any, kind: Kind) -> npt.NDArray[Any]:
    found = list(client.scan_iter(match=KINDS[kind][0] + b"*", count=_SCAN_COUNT))
    values: list[bytes | None] = []
    for start in range(0, len(found), MAX_RECORDS_PER_CALL):
        values += client.mget(found[start : start + MAX_RECORDS_PER_CALL])
    return decode_records(kind, values)


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

    def claim(self, group: str, partitions: Iterable[int]) -> Claim:
        """Take the right to write these partitions' state from whoever had it."""
        names = [f"ff:owner:{group}:{p}".encode() for p in sorted(partitions)]
        claim = Claim(names, uuid.uuid4().hex)
        if names:
            with mapped_errors("take a write"):
                self._client.mset(dict.fromkeys(names, claim.entry(0)))
        return claim

    def read(
        self, kind: Kind, keys: npt.NDArray[np.uint64], claim: Claim | None = None
    ) -> npt.NDArray[Any]:
        """Return the records that exist among the keys, in their order.

        Raises:
            StateLostError: The claim is given and no longer holds: absent records mean nothing.
        """
        values: list[bytes | None] = []
        names = [] if claim is None else claim.names
        with mapped_errors("answer a read"):
            for start in range(0, len(keys), MAX_RECORDS_PER_CALL):
                chunk = encode_keys(kind, keys[start : start + MAX_RECORDS_PER_CALL])
                since = 0 if claim is None else claim.confirmed
                found = self._client.mget(names + chunk)
                if claim is not None:
                    claim.require(found[: len(names)], since)
                values += found[len(names) :]
        return decode_records(kind, values)

    def read_all(self, kind: Kind) -> npt.NDArray[Any]:
        """Return all records of a kind."""
        with mapped_errors("answer a scan"), self._one_server() as client:
            return _all_records(client, kind)

    def read_marked(self, kind: Kind, name: str) -> tuple[dict[str, int], npt.NDArray[Any]]:
        """Return marks and all records of a kind, which include at least what the marks say.

        For terminals, which every streamer holds whole.

        Raises:
            StateStoreError: Also where the server went away in between: it may be back without its
                data, and records would be missing under marks that say that they are there.
        """
        with mapped_errors("answer a scan"), self._one_server() as client:
            marks = _marks(client, name)  # first: writers store records before marks
            return marks, _all_records(client, kind)

    @contextmanager
    def _one_server(self) -> Iterator[Any]:
        """Give a client with one connection: what it reads comes from one server process.

        The pool would open another connection, perhaps to a server that has just been started.
        """
        client = self._client.client()
        try:
            yield client
        finally:
            client.close()

    def write(self, kind: Kind, records: npt.NDArray[Any], claim: Claim | None = None) -> None:
        """Write records under their keys.

        Raises:
            StateLostError: The claim is given and no longer holds; nothing more is written.
        """
        size = records.dtype.itemsize
        for start in range(0, len(records), MAX_RECORDS_PER_CALL):
            part = records[start : start + MAX_RECORDS_PER_CALL]
            raw = part.tobytes()
            names = encode_keys(kind, part["key"])
            values = {name: raw[i * size : (i + 1) * size] for i, name in enumerate(names)}
            self._write(partial(_set_all, values), claim)

    def read_marks(self, name: str) -> dict[str, int]:
        """Return a named set of numbers (offsets up to which the records are written)."""
        with mapped_errors("answer a read"):
            return _marks(self._client, name)

    def write_marks(self, name: str, marks: dict[str, int], claim: Claim | None = None) -> None:
        """Store numbers under a name; write them after the records that they speak of."""
        if marks:
            mapping = {k: str(v) for k, v in marks.items()}
            self._write(lambda pipe: pipe.hset(f"ff:marks:{name}", mapping=mapping), claim)

    def _write(self, command: Callable[[Any], object], claim: Claim | None) -> None:
        """Send a command; with a claim, in one transaction with the check that it still holds."""
        with mapped_errors("take a write"), self._reconnecting():
            if claim is None or not claim.names:
                command(self._client)
                return
            with self._client.pipeline(transaction=True) as pipe:
                pipe.watch(*claim.names)
                claim.require(pipe.mget(claim.names), claim.confirmed)
                claim.attempted += 1
                pipe.multi()
                command(pipe)
                pipe.mset(dict.fromkeys(claim.names, claim.entry(claim.attempted)))
                pipe.execute()  # nothing happens if an entry has changed: the next attempt says why
                claim.confirmed = claim.attempted

    @contextmanager
    def _reconnecting(self) -> Iterator[None]:
        """Ask again who the server is once it takes no writes: the address has a new one now."""
        try:
            yield
        except valkey.exceptions.ReadOnlyError:
            self._client.connection_pool.disconnect(inuse_connections=False)
            raise

    def evicts(self) -> str:
        """Return the policy by which the server drops records when it is full; empty: it does not.

        Empty too where this user may not ask.
        """
        with mapped_errors("tell its memory policy"):
            try:
                memory = self._client.info("memory")
            except valkey.exceptions.NoPermissionError:
                return ""
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        # `volatile-*` drops only what has a time to live: records have none.
        return policy if memory.get("maxmemory") and policy.startswith("allkeys") else ""

    def ping(self) -> None:
        """Raise StateStoreError unless the server answers."""
        with mapped_errors("answer a ping"):
            self._client.ping()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
