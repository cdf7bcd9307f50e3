"""The cache of compiled kernels, and what happens where there can be none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import numpy as np
from flagger.features.hashing import hash_span
print(hash_span(np.frombuffer(b"customer", np.uint8), 0, 8))
"""


def run(**variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | variables, check=False,
    )  # fmt: skip


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path: Path) -> None:
    """As in a container whose root file system is read-only."""
    kept = run(XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert kept.returncode == 0, kept.stderr
    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert kept.stderr == ""
    (tmp_path / "file").touch()
    for variable in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        done = run(**{variable: str(tmp_path / "file" / "cache")})
        assert done.returncode == 0, done.stderr
        assert done.stdout == kept.stdout
        assert "Mount a folder that can be written to" in done.stderr
