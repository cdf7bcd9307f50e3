"""Bring a backup into an empty Valkey and an empty case store.

What a backup is: `backup_files`; why it holds: `backup`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from deploy.backup_files import (
    DECISIONS,
    FORMAT,
    LENGTH_BYTES,
    MANIFEST,
    RECORD_FILES,
    SCAN_COUNT,
    Manifest,
    sha256,
    state_client,
)
from flagger.errors import ConfigurationError, DataError
from flagger.settings import Settings
from flagger.state.records import STATE_VERSION
from flagger.state.store import KINDS, MAX_RECORDS_PER_CALL, Kind, StateStore

__all__ = ["restore"]

_decisions = msgspec.msgpack.Decoder(tuple[bytes, int, bytes])


def restore(settings: Settings, folder: Path, *, new_log: bool = False) -> Manifest:
    """Bring a backup into an empty Valkey database and its cases into an empty case store.

    Args:
        settings: Where to.
        folder: The backup.
        new_log: Kafka's log is gone too: the state counts as what was before the new log's first
            message. Without it, streamers go on in the same log, from the backup's marks.

    Raises:
        DataError: The backup is damaged, unfinished or of another release's layout.
        ConfigurationError: There is state or there are cases already, it is another group's
            backup, or the case store's tables are not there yet.
        CaseStoreError: The desk's database is away or refuses.
    """
    manifest = _read_manifest(folder)
    if manifest.consumer_group != settings.consumer_group:
        raise ConfigurationError(
            f"{folder} is of the consumer group {manifest.consumer_group}, these settings are of "
            f"{settings.consumer_group}: set FLAGGER_CONSUMER_GROUP."
        )
    # Cases are checked first and stay last: what fails between leaves their store empty.
    with _restored_cases(settings, folder, manifest):
        _restore_state(settings, folder, manifest, new_log=new_log)
    return manifest


def _restored_cases(
    settings: Settings, folder: Path, manifest: Manifest
) -> AbstractContextManager[None]:
    if not manifest.case_layout:
        return nullcontext()
    from deploy.backup_cases import (  # needs the desk's libraries, which may be left out
        restored_cases,
    )

    return restored_cases(settings, folder, manifest)


def _restore_state(settings: Settings, folder: Path, manifest: Manifest, *, new_log: bool) -> None:
    group = settings.consumer_group
    store = StateStore(settings.valkey_url or "")
    with closing(store), state_client(settings) as client:
        for prefix in (*(prefix for prefix, _ in KINDS.values()), b"ff:marks:"):
            if any(True for _ in client.scan_iter(match=prefix + b"*", count=SCAN_COUNT)):
                raise ConfigurationError(
                    f"The Valkey database is not empty ({prefix.decode()}*): two states do not "
                    f"mix. Stop the streamers and use an empty database."
                )
        # A streamer that runs on the empty database stops writing; its successor loads this.
        claim = store.claim(group, map(int, manifest.marks))
        for kind, name in RECORD_FILES.items():
            with (folder / name).open("rb") as file:
                for records in _read_records(kind, file):
                    store.write(kind, _before_a_log(kind, records) if new_log else records, claim)
        _restore_decisions(client, folder / DECISIONS)
        if not new_log:
            store.write_marks(f"{group}:side-logs", manifest.side_marks, claim)
            store.write_marks(group, manifest.marks, claim)


def _read_manifest(folder: Path) -> Manifest:
    remedy = "Use another backup."
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise DataError(
            file=str(path), problem=f"cannot be read: {error}", remedy=remedy
        ) from error
    except msgspec.DecodeError as error:
        raise DataError(file=str(path), problem=f"is damaged: {error}", remedy=remedy) from error
    if (manifest.format, manifest.state_version) != (FORMAT, STATE_VERSION):
        raise DataError(
            file=str(path),
            problem=f"has format {manifest.format} and state version {manifest.state_version}, "
            f"this release reads {FORMAT} and {STATE_VERSION}",
            remedy=f"Restore with release {manifest.release}, or rebuild the state from the log.",
        )
    for name, expected in manifest.sha256.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise DataError(
                file=str(folder / name), problem="is not what was written (SHA-256)", remedy=remedy
            )
    return manifest


def _read_records(kind: Kind, file: BinaryIO) -> Iterator[npt.NDArray[Any]]:
    dtype = KINDS[kind][1]
    while raw := file.read(MAX_RECORDS_PER_CALL * dtype.itemsize):
        yield np.frombuffer(raw, dtype=dtype)


def _before_a_log(kind: Kind, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return records that include nothing of the log that begins now."""
    fresh = records.copy()
    if kind == "customer":
        fresh["partition"], fresh["applied_offset"] = -1, 0
    else:
        fresh["activity_offset"], fresh["label_offset"] = 0, 0
    return fresh


def _restore_decisions(client: Any, path: Path) -> None:
    with path.open("rb") as file:
        while True:
            pipe = client.pipeline(transaction=False)
            for _ in range(MAX_RECORDS_PER_CALL):
                length = file.read(LENGTH_BYTES)
                if not length:
                    break
                key, expires_at_ms, value = _decisions.decode(file.read(int.from_bytes(length)))
                pipe.set(key, value, pxat=expires_at_ms)  # in the past: not stored
            if not len(pipe):
                return
            pipe.execute()
