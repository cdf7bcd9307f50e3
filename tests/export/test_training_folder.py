"""What export takes for a finished training, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.publish import export_model
from export.training import read_training
from flagger.errors import ContractMismatchError, PublishError
from flagger.features import FEATURE_NAMES
from flagger.training_files import bind_files


def copied(training_dir: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in training_dir.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["model.json", "contract.json", "policy.json", "metrics.json"])
def test_an_unfinished_training_is_refused(training_dir: Path, tmp_path: Path, name: str) -> None:
    folder = copied(training_dir, tmp_path / "half")
    (folder / name).unlink()
    with pytest.raises(PublishError, match=rf"{name} missing.*flagger train"):
        export_model(folder, tmp_path / "repository")


def test_thresholds_out_of_order_are_refused(training_dir: Path, tmp_path: Path) -> None:
    folder = copied(training_dir, tmp_path / "bad")
    (folder / "policy.json").write_text(
        '{"policy_version": "p", "review_threshold": 0.9, "decline_threshold": 0.1}'
    )
    with pytest.raises(PublishError, match="thresholds"):
        export_model(folder, tmp_path / "repository")


def test_a_model_of_another_catalogue_is_refused(training_dir: Path, tmp_path: Path) -> None:
    folder = copied(training_dir, tmp_path / "old")
    contract = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps(contract | {"hash": "feedfeedfeedfeed"}))
    with pytest.raises(ContractMismatchError, match="feedfeedfeedfeed"):
        export_model(folder, tmp_path / "repository")


def test_real_rows_of_the_training_are_used_where_they_are(
    training_dir: Path, tmp_path: Path
) -> None:
    folder = copied(training_dir, tmp_path / "rows")
    assert read_training(folder).sample_rows is None

    rows = np.random.default_rng(0).normal(size=(2, len(FEATURE_NAMES))).astype(np.float32)
    rows[0, 3] = np.nan
    columns = {name: rows[:, i] for i, name in reversed(list(enumerate(FEATURE_NAMES)))}
    path = folder / "feature_sample.parquet"
    pq.write_table(pa.table({"score": [0.1, 0.2], **columns}), path)
    bind_files(folder)
    sample = read_training(folder).sample_rows
    assert sample is not None
    np.testing.assert_array_equal(sample, rows)

    pq.write_table(pa.table({"score": [0.1, 0.2]}), path)
    bind_files(folder)
    with pytest.raises(PublishError, match="feature columns"):
        read_training(folder)
