"""`flagger export` as it is typed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from export.cli import export
from flagger.addresses import ADDRESS_FIELDS
from flagger.errors import ConfigurationError, PublishError
from flagger.models import live_version


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAGGER_MODEL_REPOSITORY", str(tmp_path / "from_environment"))
    for name in ("TRITON_URL", "VALKEY_URL", "KAFKA_BOOTSTRAP_SERVERS"):
        monkeypatch.delenv(f"FLAGGER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)  # away from an embedded stack that may run in this folder
    return tmp_path / "from_environment"


def test_publish_twice_and_roll_back(repository: Path, training_dir: Path) -> None:
    run = CliRunner().invoke
    for version in ("1", "2"):
        result = run(export, [str(training_dir), "--parity-rows", "200"], catch_exceptions=False)
        assert result.exit_code == 0
        assert "model.onnx agrees on 200 rows" in result.output
        assert f"version {version} is live" in result.output
        assert "must be restarted" in result.output
    result = run(export, ["--roll-back"], catch_exceptions=False)
    assert result.output == "version 1 is live again\n"
    assert live_version(repository) == "1"
    assert isinstance(run(export, ["--roll-back"]).exception, ConfigurationError)


@pytest.mark.parametrize("both", [True, False])
def test_a_folder_or_a_roll_back_and_not_both(
    repository: Path, training_dir: Path, both: bool
) -> None:
    result = CliRunner().invoke(export, [str(training_dir), "--roll-back"] if both else [])
    assert result.exit_code == 2
    assert "either TRAINING_DIR or --roll-back" in result.output
    assert not repository.exists()


def test_the_repository_option_wins(repository: Path, training_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    arguments = [str(training_dir), "--repository", str(other), "--parity-rows", "50"]
    assert CliRunner().invoke(export, arguments, catch_exceptions=False).exit_code == 0
    assert live_version(other) == "1"
    assert not repository.exists()


def test_an_embedded_stack_of_this_folder_is_told_if_it_serves_the_repository(
    repository: Path, training_dir: Path, tmp_path: Path
) -> None:
    nobody = dict.fromkeys(ADDRESS_FIELDS, "127.0.0.1:9")
    (tmp_path / ".flagger").mkdir()
    record = {"owner": {"pid": os.getpid()}, "addresses": nobody}
    (tmp_path / ".flagger" / "stack.json").write_text(json.dumps(record))
    arguments = [str(training_dir), "--parity-rows", "50"]

    error = CliRunner().invoke(export, arguments).exception

    assert isinstance(error, PublishError)
    assert "127.0.0.1:9" in str(error)
    other = CliRunner().invoke(export, [*arguments, "--repository", str(tmp_path / "other")])
    assert other.exit_code == 0
