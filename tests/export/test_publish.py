"""A version appears whole beside the others, or not at all; only then does the pointer move."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import publish
from export.configs import config_files
from export.layout import next_version
from export.publish import export_model, roll_back
from export.training import read_training
from flagger.errors import ConfigurationError, PublishError
from flagger.features import FEATURE_NAMES
from flagger.models import list_versions, live_version, load_version, set_live_version

ROWS = 500


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return modification time and content of every file."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def repository(training_dir: Path, tmp_path: Path) -> Iterator[Path]:
    """A repository with version 1, live."""
    repository = tmp_path / "model_repository"
    assert export_model(training_dir, repository, n_parity_rows=ROWS) == "1"
    yield repository
    assert not list(repository.rglob(".*")), "staging or temporary files were left behind"


def test_a_version_is_written_in_triton_s_layout_with_its_proof(
    repository: Path, training_dir: Path
) -> None:
    assert sorted(snapshot(repository)) == [
        "audit.jsonl",
        "fraud_fil/1/contract.json",
        "fraud_fil/1/manifest.json",
        "fraud_fil/1/metrics.json",
        "fraud_fil/1/policy.json",
        "fraud_fil/1/xgboost.json",
        "fraud_fil/config.pbtxt",
        "fraud_fil/configs/gpu.pbtxt",
        "fraud_fil_explain/1/xgboost.json",
        "fraud_fil_explain/config.pbtxt",
        "fraud_fil_explain/configs/gpu.pbtxt",
        "fraud_onnx/1/model.onnx",
        "fraud_onnx/config.pbtxt",
        "live.json",
    ]
    version = load_version(repository, live_version(repository))
    assert version.contract == read_training(training_dir).contract
    manifest = version.manifest
    assert manifest["n_features"] == len(FEATURE_NAMES)
    assert manifest["n_trees"] == 40
    assert manifest["feature_hash"] == version.contract.hash
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", manifest["git_revision"] or "0" * 40)
    metrics = json.loads((training_dir / "metrics.json").read_text())
    assert manifest["data_window"] == metrics["windows"]
    assert set(manifest["parity"]) == {"xgboost.json", "model.onnx"}
    for report in manifest["parity"].values():
        assert report["rows"] == ROWS
        assert report["max_abs_difference"] <= report["tolerance"]
    assert len(manifest["artefacts"]) == 6


def test_folders_and_files_may_be_read_by_another_user(repository: Path) -> None:
    for path in repository.rglob("*"):
        needed = 0o555 if path.is_dir() else 0o444
        assert path.stat().st_mode & needed == needed, path


def test_the_next_version_stands_beside_the_served_one_untouched(
    repository: Path, training_dir: Path
) -> None:
    before = snapshot(repository)
    del before["live.json"], before["audit.jsonl"]

    assert export_model(training_dir, repository, n_parity_rows=ROWS) == "2"

    after = snapshot(repository)
    assert {name: after[name] for name in before} == before
    assert list_versions(repository) == ("1", "2")
    assert live_version(repository) == "2"


def test_a_model_that_fails_the_proof_changes_nothing(
    repository: Path, training_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(repository)

    class WrongScorer:
        def __init__(self, graph: bytes) -> None:
            pass

        def __call__(self, rows: Any) -> Any:
            return np.full(len(rows), 0.5, dtype=np.float32)

    monkeypatch.setattr(publish, "OnnxScorer", WrongScorer)
    with pytest.raises(PublishError, match=r"model\.onnx does not answer.*row \d+: booster 0\."):
        export_model(training_dir, repository, n_parity_rows=ROWS, cpu_instances=3)
    assert snapshot(repository) == before


def test_a_failure_after_the_files_are_placed_takes_them_away_again(
    repository: Path, training_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: content for name, (_, content) in snapshot(repository).items()}

    def interrupted(*_: Any) -> None:
        assert list_versions(repository) == ("1", "2")
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "load_version", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_model(training_dir, repository, n_parity_rows=ROWS, cpu_instances=3)
    assert {name: content for name, (_, content) in snapshot(repository).items()} == before
    assert not (repository / "fraud_onnx" / "2").exists()


def test_a_pointer_that_cannot_be_written_stays_where_it_is(
    repository: Path, training_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(publish, "set_live_version", full_disk)
    with pytest.raises(OSError, match="no space left"):
        export_model(training_dir, repository, n_parity_rows=ROWS)
    assert live_version(repository) == "1"
    assert load_version(repository, "2").version == "2"


def test_a_repository_that_cannot_be_written_is_named(training_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match=r"file cannot be written.*permissions"):
        export_model(training_dir, tmp_path / "file", n_parity_rows=ROWS)


def test_no_server_at_the_given_address_publishes_nothing(
    repository: Path, training_dir: Path
) -> None:
    before = snapshot(repository)
    with pytest.raises(PublishError, match=r"127\.0\.0\.1:9 did not load.*explicit"):
        export_model(training_dir, repository, n_parity_rows=ROWS, triton_url="127.0.0.1:9")
    assert snapshot(repository) == before


def test_the_first_version_that_fails_leaves_no_version(training_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "new"
    with pytest.raises(PublishError):
        export_model(training_dir, repository, n_parity_rows=ROWS, triton_url="127.0.0.1:9")
    assert snapshot(repository) == {}
    with pytest.raises(ConfigurationError, match="no model version is live"):
        live_version(repository)


def test_exports_at_the_same_time_wait_for_each_other(
    training_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of one number would fight for its folders, and the loser take the configs away."""
    both = threading.Barrier(2)

    def numbered(repository: Path) -> str:
        number = next_version(repository)
        with suppress(threading.BrokenBarrierError):  # alone, as it should be
            both.wait(0.3)
        return number

    monkeypatch.setattr(publish, "next_version", numbered)
    repository = tmp_path / "new"
    with ThreadPoolExecutor(2) as pool:
        exports = [
            pool.submit(export_model, training_dir, repository, n_parity_rows=50) for _ in range(2)
        ]
        assert {done.result() for done in exports} == {"1", "2"}
    assert load_version(repository, live_version(repository)).version == "2"
    assert all((repository / name).exists() for name in config_files(len(FEATURE_NAMES)))


def test_a_damaged_version_is_named_by_the_next_export(
    repository: Path, training_dir: Path
) -> None:
    (repository / "fraud_fil" / "1" / "contract.json").unlink()
    with pytest.raises(PublishError, match=r"Version 1 in .* is damaged.*Remove its folders"):
        export_model(training_dir, repository, n_parity_rows=50)


def test_half_a_version_does_not_count_but_its_number_is_not_used_again(
    repository: Path, training_dir: Path
) -> None:
    (repository / "fraud_onnx" / "2").mkdir()
    assert list_versions(repository) == ("1",)
    assert export_model(training_dir, repository, n_parity_rows=ROWS) == "3"


def test_old_versions_go_but_never_the_live_one_or_its_predecessor(
    repository: Path, training_dir: Path
) -> None:
    for version in ("2", "3"):
        assert export_model(training_dir, repository, keep=9, n_parity_rows=ROWS) == version
    set_live_version(repository, "1")
    export_model(training_dir, repository, keep=1, n_parity_rows=ROWS)
    assert list_versions(repository) == ("1", "4")
    assert sorted(p.name for p in (repository / "fraud_onnx").glob("[0-9]*")) == ["1", "4"]
    assert roll_back(repository) == "1"


def test_rolling_back_moves_the_pointer_only(repository: Path, training_dir: Path) -> None:
    export_model(training_dir, repository, n_parity_rows=ROWS)
    before = snapshot(repository)
    del before["live.json"], before["audit.jsonl"]

    assert roll_back(repository) == "1"

    assert live_version(repository) == "1"
    after = snapshot(repository)
    assert {name: after[name] for name in before} == before
    with pytest.raises(ConfigurationError, match="no version to go back to"):
        roll_back(repository)


def test_rolling_back_to_a_damaged_version_is_refused(repository: Path, training_dir: Path) -> None:
    export_model(training_dir, repository, n_parity_rows=ROWS)
    (repository / "fraud_onnx" / "1" / "model.onnx").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="was changed"):
        roll_back(repository)
    assert live_version(repository) == "2"


def test_more_instances_are_written_to_the_configs(repository: Path, training_dir: Path) -> None:
    export_model(training_dir, repository, n_parity_rows=ROWS, cpu_instances=3)
    for name, text in config_files(len(FEATURE_NAMES), cpu_instances=3).items():
        assert (repository / name).read_text() == text


def test_models_of_different_width_are_not_mixed(repository: Path, training_dir: Path) -> None:
    path = repository / "fraud_fil" / "1" / "contract.json"
    contract = json.loads(path.read_text())
    contract["names"] = contract["names"][:-1]
    path.write_text(json.dumps(contract))
    with pytest.raises(PublishError, match=rf"takes {len(FEATURE_NAMES) - 1} columns"):
        export_model(training_dir, repository, n_parity_rows=ROWS)


def test_a_candidate_may_be_the_first_version(training_dir: Path, tmp_path: Path) -> None:
    repository = tmp_path / "new"
    assert export_model(training_dir, repository, n_parity_rows=50, make_live=False) == "1"
    with pytest.raises(ConfigurationError, match="no model version is live"):
        live_version(repository)
    publish.publish_version(repository, "1")
    assert live_version(repository) == "1"
