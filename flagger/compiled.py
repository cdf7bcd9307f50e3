"""How this project compiles Python to machine code: one decorator, one cache that cannot go stale.

numba's own cache watches only the file that defines a function, not the functions it calls. The
cache folder is therefore named by a hash of every source file that holds kernels. Where nothing can
be written there, kernels are compiled anew by each process that calls them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

__all__ = ["cache_home", "kernel"]

_KERNEL_SOURCES = ("compiled.py", "features", "state", "wire")

F = TypeVar("F", bound=Callable[..., Any])


def cache_home() -> Path:
    """Return this project's folder in the user's cache (XDG_CACHE_HOME is honoured)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fraud-flagger"


def _sources_digest() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    here = Path(__file__).parent
    for entry in _KERNEL_SOURCES:
        path = here / entry
        for source in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        logging.getLogger(__name__).warning(
            "Compiled kernels cannot be kept (%s): each start compiles what it calls, up to a "
            "minute. Mount a folder that can be written to and name it in XDG_CACHE_HOME.",
            error,
        )
        return False


_FOLDER = Path(os.environ.get("NUMBA_CACHE_DIR") or cache_home() / "numba" / _sources_digest())
_IS_CACHED = _can_write(_FOLDER)
numba.config.CACHE_DIR = str(_FOLDER)  # type: ignore[attr-defined]


def kernel(function: F) -> F:
    """Compile `function` without the interpreter lock; division by zero gives inf or NaN.

    Strict IEEE arithmetic (no fast-math): the same events give the same bits on every path.
    """
    return cast("F", numba.njit(nogil=True, cache=_IS_CACHED, error_model="numpy")(function))
