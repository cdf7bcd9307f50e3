"""What a backup consists of, for those who write and those who read it.

A backup is a folder: `customers.bin` and `terminals.bin` (records as they stand in Valkey, one
after the other), `decisions.msgpack` (the gateway's stored decisions with their expiry),
`cases.jsonl`, `case_events.jsonl` and `labels_outbox.jsonl` (the review desk's tables, a row a
line, where there is a desk), and `manifest.json` (versions, counts, SHA-256 of each file, and the
marks: up to which offset the state includes the log).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import valkey

from flagger.errors import ConfigurationError, StateStoreError
from flagger.settings import Settings
from flagger.state.store import Kind

__all__ = [
    "CASE_FILES",
    "DECISIONS",
    "DECISION_PREFIX",
    "FORMAT",
    "LENGTH_BYTES",
    "MANIFEST",
    "RECORD_FILES",
    "SCAN_COUNT",
    "TIMEOUT_S",
    "Manifest",
    "case_file",
    "sha256",
    "state_client",
]

FORMAT = 2
MANIFEST = "manifest.json"
RECORD_FILES: dict[Kind, str] = {"customer": "customers.bin", "terminal": "terminals.bin"}
DECISIONS = "decisions.msgpack"
"""Entries of (key, expiry in epoch milliseconds, value), each after its length in 4 bytes."""
CASE_FILES = {
    "cases": "cases.jsonl",
    "case_events": "case_events.jsonl",
    "labels_outbox": "labels_outbox.jsonl",
}
"""Table of the case store -> file; each table behind those that it refers to."""
DECISION_PREFIX = b"ff:d:"
"""Keys of the gateway's stored decisions; see `gateway/state.py`."""
LENGTH_BYTES = 4
SCAN_COUNT = 10_000
TIMEOUT_S = 30.0
_HASH_PIECE = 1 << 20
_SQLITE = "sqlite:///"


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds.

    Attributes:
        format: Layout of the folder.
        state_version: `STATE_VERSION` of the records.
        release: Release of Fraud Flagger that wrote it.
        created_at: RFC 3339, UTC.
        consumer_group: Whose marks these are.
        marks: Partition -> offset up to which the customers' records are complete.
        side_marks: Topic of a side log -> the same for the terminals' records.
        counts: File -> records in it.
        sha256: File -> checksum, hexadecimal.
        case_layout: Alembic revision of the cases' tables; empty: there are no cases.
    """

    format: int
    state_version: int
    release: str
    created_at: str
    consumer_group: str
    marks: dict[str, int]
    side_marks: dict[str, int]
    counts: dict[str, int]
    sha256: dict[str, str]
    case_layout: str = ""


@contextmanager
def state_client(settings: Settings) -> Iterator[Any]:
    """Open a connection to Valkey, with its errors turned into ours."""
    if settings.valkey_url is None:
        raise ConfigurationError("FLAGGER_VALKEY_URL is not set: it names the state to work on.")
    try:
        client: Any = valkey.Valkey.from_url(settings.valkey_url, socket_timeout=TIMEOUT_S)
    except ValueError as error:
        raise ConfigurationError(f"FLAGGER_VALKEY_URL is not a Valkey address: {error}.") from error
    try:
        yield client
    except valkey.exceptions.ValkeyError as error:
        raise StateStoreError(
            f"Valkey failed: {error}. A backup that was not finished is no backup; an unfinished "
            f"restore leaves no marks, so nothing trusts it. Empty the database and try again."
        ) from error
    finally:
        client.close()


def case_file(settings: Settings) -> Path | None:
    """Return the SQLite file of the desk's cases; None: they are in another database."""
    url = settings.case_store_url.get_secret_value()
    return Path(url.removeprefix(_SQLITE)) if url.startswith(_SQLITE) else None


def sha256(path: Path) -> str:
    """Return a file's SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASH_PIECE):
            digest.update(piece)
    return digest.hexdigest()
