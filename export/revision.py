"""Which source code a version was exported with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["git_revision"]

_TIMEOUT_S = 10


def git_revision(folder: Path = Path(__file__).parent) -> str | None:
    """Return the commit of the source code, with `-dirty` where files differ from it.

    None where the code is not in a git work tree, for example when it is installed from a wheel.
    """
    try:
        # The code may lie in somebody else's work tree, as an installed package does.
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        return _git(folder, "describe", "--always", "--abbrev=40", "--dirty", "--match=") or None
    except (subprocess.SubprocessError, OSError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    found = subprocess.run(
        [shutil.which("git") or "git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=True,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # a commit may be under way
    )
    return found.stdout.strip()
