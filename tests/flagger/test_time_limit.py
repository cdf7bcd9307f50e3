"""A test that its time limit cannot end does not hold up the run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

STUCK = """
import time
import pytest

@pytest.mark.timeout(1)
def test_stuck():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass

def test_next(): ...
"""


def test_a_stuck_test_ends_its_worker_and_is_named(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parents[1] / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(STUCK)
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 180\n")
    plugins = ["-p", "xdist.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "-n", "1"],
        cwd=tmp_path,
        env={**os.environ, "FLAGGER_TEST_PATIENCE_S": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "crashed while running 'test_it.py::test_stuck'" in done.stdout
    assert 'test_it.py", line 9 in test_stuck' in done.stderr
    assert "1 failed, 1 passed" in done.stdout
