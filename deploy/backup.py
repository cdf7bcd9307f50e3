"""Back up the entity state and restore it, while streamers run or after everything was lost.

Why a backup needs no pause: marks are read first. Records that are written later include more than
the marks say, and each carries the offset that it includes; a record that comes into being later
has all its transactions behind the marks. A streamer that starts from a restored state reads the
log from the marks and skips what a record includes already.

Not in a backup: what the gateway accepted within the last minutes and no record includes yet (it is
in the log), rate limits, and who owns which partition.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from deploy.backup_files import (
    DECISION_PREFIX,
    DECISIONS,
    FORMAT,
    LENGTH_BYTES,
    MANIFEST,
    RECORD_FILES,
    SCAN_COUNT,
    Manifest,
    case_file,
    sha256,
    state_client,
)
from flagger import __version__
from flagger.errors import ConfigurationError
from flagger.settings import Settings
from flagger.state.records import STATE_VERSION
from flagger.state.store import KINDS, MAX_RECORDS_PER_CALL, Kind, StateStore, decode_records

__all__ = ["back_up"]


def back_up(settings: Settings, folder: Path, *, now: datetime | None = None) -> Manifest:
    """Write the state into a new folder; streamers and gateways may run meanwhile.

    Raises:
        ConfigurationError: The folder exists, there is no state of this consumer group, or the
            case store has another release's layout.
        StateStoreError: Valkey failed, or holds records of another release.
        CaseStoreError: The desk's database is away or refuses.
    """
    if folder.exists():
        raise ConfigurationError(f"{folder} exists; a backup is never overwritten. Name another.")
    group = settings.consumer_group
    store = StateStore(settings.valkey_url or "")
    with closing(store), state_client(settings) as client:
        marks, side_marks = store.read_marks(group), store.read_marks(f"{group}:side-logs")
        if not marks:
            raise ConfigurationError(
                f"There is no state of the consumer group {group} in this Valkey database: check "
                f"FLAGGER_VALKEY_URL and FLAGGER_CONSUMER_GROUP."
            )
        unfinished = folder.with_name(f".{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True, mode=0o700)  # it holds customers' habits, if no names
        counts = {
            name: _write_records(client, kind, unfinished / name)
            for kind, name in RECORD_FILES.items()
        }
        counts[DECISIONS] = _write_decisions(client, unfinished / DECISIONS)
    case_layout, case_counts = _write_cases(settings, unfinished)
    counts |= case_counts
    manifest = Manifest(
        format=FORMAT,
        state_version=STATE_VERSION,
        release=__version__,
        created_at=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
        consumer_group=group,
        marks=marks,
        side_marks=side_marks,
        counts=counts,
        sha256={name: sha256(unfinished / name) for name in counts},
        case_layout=case_layout,
    )
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (unfinished / MANIFEST).write_bytes(text + b"\n")
    _sync(unfinished)
    unfinished.rename(folder)
    return manifest


def _sync(folder: Path) -> None:
    """Make sure that the files outlive a power cut before the folder gets its name."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _keys(client: Any, prefix: bytes) -> Iterator[list[bytes]]:
    """Yield all keys with a prefix, in groups; some may come twice, as SCAN has it."""
    scan = client.scan_iter(match=prefix + b"*", count=SCAN_COUNT)
    yield from iter(lambda: list(itertools.islice(scan, MAX_RECORDS_PER_CALL)), [])


def _write_records(client: Any, kind: Kind, path: Path) -> int:
    written = 0
    with path.open("wb") as file:
        for keys in _keys(client, KINDS[kind][0]):
            records = decode_records(kind, client.mget(keys))
            file.write(records.tobytes())
            written += len(records)
    return written


def _write_decisions(client: Any, path: Path) -> int:
    written = 0
    now_s, microseconds = client.time()
    now_ms = now_s * 1000 + microseconds // 1000
    with path.open("wb") as file:
        for keys in _keys(client, DECISION_PREFIX):
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.get(key)
                pipe.pttl(key)
            answers = iter(pipe.execute())
            for key, value, left_ms in zip(keys, answers, answers, strict=True):
                if value is None or left_ms <= 0:
                    continue
                entry = msgspec.msgpack.encode((key, now_ms + left_ms, value))
                file.write(len(entry).to_bytes(LENGTH_BYTES) + entry)
                written += 1
    return written


def _write_cases(settings: Settings, folder: Path) -> tuple[str, dict[str, int]]:
    file = case_file(settings)
    if file is not None and not file.is_file():
        return "", {}  # nobody uses a desk
    from deploy.backup_cases import write_cases  # needs the desk's libraries, which may be left out

    return write_cases(settings, folder)
