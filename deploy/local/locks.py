"""One process at a time: a lock on a file, which the kernel lets go when its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FileLock", "exclusive"]


class FileLock:
    """A lock that this object holds from `acquire` to `release`; also against this process.

    Args:
        path: The lock's file. It stays: deleting it would let two holders in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock; return False if `wait` is False and it is held, by this object too."""
        if self.held:
            return False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(file)
            return False
        self._file = file
        return True

    @property
    def held(self) -> bool:
        """True between `acquire` and `release`."""
        return self._file is not None

    def release(self) -> None:
        """Let go; without effect if it is not held."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it inside the block."""
    lock = FileLock(path)
    lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release()
