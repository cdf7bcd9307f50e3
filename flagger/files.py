"""Files that others read at the same time: written in one step, named by their checksum."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["exclusive", "file_sha256", "write_atomically"]


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Write a file in one step: whoever reads it sees the old text or the new one.

    Args:
        path: The file; its folder is there.
        text: All of it.
        mode: Its permissions; others may read it by default, a server of another user for one.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: others who ask for it wait, in this process or another.

    The lock goes with the process, also when that is killed. It binds only who asks for it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # releases the lock


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
