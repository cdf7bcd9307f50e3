"""The FIL file is read by the treelite of old and new Triton containers, and scored alike.

treelite is what the FIL backend reads models with: 4.1.2 is in Triton 24.05 to 24.08, 4.3.0 in
24.09 and 24.10, 4.4.1 in 25.01 to 25.12, 4.6.1 in 26.01 to 26.05, 4.7.0 in 26.06. Each release
runs in an environment of its own, cached by uv.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.normalise import NormalisedModel, normalise, scores_of
from export.parity import boundary_rows
from flagger.features import FEATURE_NAMES

RELEASES = ("4.1.2", "4.3.0", "4.4.1", "4.6.1", "4.7.0")
NUMPY = "numpy==2.2.6"
SCRIPT = Path(__file__).with_name("treelite_check.py")
LOCAL_UV = Path(__file__).parents[2] / ".tools" / "bin" / "uv"


def run_treelite(release: str, model_file: Path, rows: Any) -> subprocess.CompletedProcess[str]:
    uv = shutil.which("uv") or str(LOCAL_UV)
    rows_file = model_file.with_name("rows.npy")
    np.save(rows_file, rows)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    environment_of_its_own = ["--quiet", "--no-project", "--isolated", "--python", python]
    packages = ["--with", f"treelite=={release}", "--with", NUMPY]
    files = [str(model_file), str(rows_file), str(model_file.with_name("scores.npy"))]
    return subprocess.run(
        [uv, "run", *environment_of_its_own, *packages, "python", str(SCRIPT), *files],
        capture_output=True,
        text=True,
        env=environment,
        timeout=150,
        check=False,
    )


def exported(booster: Any, folder: Path) -> tuple[NormalisedModel, Path]:
    booster.save_model(folder / "model.json")
    model = normalise(folder / "model.json", FEATURE_NAMES)
    (folder / "xgboost.json").write_text(model.text)
    return model, folder / "xgboost.json"


@pytest.mark.parametrize("release", RELEASES)
def test_the_fil_file_is_read_and_scored_alike(
    release: str, early_stopped: Any, tmp_path: Path
) -> None:
    model, path = exported(early_stopped, tmp_path)
    rows = boundary_rows(model, 2_000)
    assert np.isnan(rows[0]).all()

    result = run_treelite(release, path, rows)

    assert result.returncode == 0, result.stderr
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores, scores_of(model.booster, rows), rtol=0, atol=1e-5)


def test_an_old_release_refuses_the_file_as_xgboost_writes_it(booster: Any, tmp_path: Path) -> None:
    """Why the file is normalised at all; once this fails, normalising can go."""
    booster.save_model(tmp_path / "xgboost.json")
    rows = np.zeros((1, len(FEATURE_NAMES)), dtype=np.float32)
    result = run_treelite("4.4.1", tmp_path / "xgboost.json", rows)
    assert result.returncode != 0
    assert "TreeliteError" in result.stderr
