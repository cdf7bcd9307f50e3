"""`audit.jsonl`: one line per change of `flagger.pointer`, only ever appended to."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagger.errors import ConfigurationError

__all__ = ["AUDIT_FILE", "append_record", "read_audit"]

AUDIT_FILE = "audit.jsonl"


def read_audit(repository: Path) -> list[dict[str, Any]]:
    """Return all changes, oldest first.

    Raises:
        ConfigurationError: A line is not a record.
    """
    path = repository / AUDIT_FILE
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:  # not splitlines(): reasons may hold its other signs
        return [_record(line, number, path) for number, line in enumerate(lines, start=1)]


def _record(line: str, number: int, path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
        record["at"], record["action"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path}, line {number} is not an audit record ({error!r}). It was changed by hand, or "
            f"cut off by a crash: look at it, and remove the line."
        ) from error
    return record


def append_record(repository: Path, record: Mapping[str, Any]) -> None:
    """Write one line, or nothing: a disk that is full leaves no half of it.

    Raises:
        OSError: It cannot be written.
    """
    line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
    with (repository / AUDIT_FILE).open("ab", buffering=0) as file:
        whole = file.tell()
        try:
            if file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise
