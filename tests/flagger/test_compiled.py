"""The cache of compiled kernels, and what happens where there can be none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = """
from flagger.compiled import kernel


@kernel
def add(one, other):
    return one + other


print(add(1, 2))
"""


def run(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "sums.py").write_text(SOURCE)
    return subprocess.run(
        [sys.executable, "-c", "import sums"],
        capture_output=True, text=True, cwd=folder, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
    )  # fmt: skip


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path: Path) -> None:
    """As in a container whose root file system is read-only."""
    kept = run(tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert kept.returncode == 0, kept.stderr
    assert kept.stdout == "3\n"
    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert kept.stderr == ""
    (tmp_path / "file").touch()
    for variable in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR"):
        done = run(tmp_path, **{variable: str(tmp_path / "file" / "cache")})
        assert done.returncode == 0, done.stderr
        assert done.stdout == kept.stdout
        assert "Mount a folder that can be written to" in done.stderr
