"""`flagger models shadow` and `canary` as they are typed, on versions of real trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from export.models_cli import models
from export.publish import export_model
from flagger.errors import ConfigurationError, PublishError
from flagger.models import list_versions
from flagger.pointer import read_audit, read_pointer
from flagger.trials import set_shadow


@pytest.fixture(scope="module")
def two_versions(small_training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Version 1 is live, 2 a candidate of the same training."""
    repository = tmp_path_factory.mktemp("trials") / "model_repository"
    export_model(small_training, repository, n_parity_rows=50)
    export_model(small_training, repository, n_parity_rows=50, make_live=False)
    return repository


@pytest.fixture
def repository(two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TRITON_URL", "VALKEY_URL", "KAFKA_BOOTSTRAP_SERVERS"):
        monkeypatch.delenv(f"FLAGGER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)  # away from an embedded stack that may run in this folder
    copied = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    monkeypatch.setenv("FLAGGER_MODEL_REPOSITORY", str(copied))
    return copied


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models, arguments, catch_exceptions=False)


def test_trials_begin_show_and_end(repository: Path) -> None:
    assert run("shadow", "2", "--why", "new features").output == "version 2 is the shadow\n"
    begun = run("canary", "2", "--share", "0.1")
    assert begun.output == "version 2 decides 0.1 of the customers\n"
    lines = run("list").output.splitlines()
    assert lines[1].startswith("*  1")
    assert lines[1].endswith("live")
    assert lines[2].endswith("shadow, canary 0.1")
    assert "new features" in run("show", "2").output
    assert run("shadow", "--off").output == "no shadow\n"
    assert run("canary", "--off").output == "no canary\n"
    assert read_pointer(repository).trials == ()
    actions = [record["action"] for record in read_audit(repository)[-4:]]
    assert actions == ["shadow", "canary", "shadow", "canary"]


def test_publishing_the_candidate_ends_its_trial(repository: Path) -> None:
    run("canary", "2")
    assert read_pointer(repository).canary is not None
    run("publish", "2")
    pointer = read_pointer(repository)
    assert (pointer.version, pointer.trials) == ("2", ())


@pytest.mark.parametrize(
    "arguments",
    [("shadow",), ("shadow", "2", "--off"), ("canary",), ("canary", "2", "--share", "0.7")],
)
def test_wrong_usage_changes_nothing(repository: Path, arguments: tuple[str, ...]) -> None:
    before = (repository / "live.json").read_bytes()
    assert CliRunner().invoke(models, arguments).exit_code == 2
    assert (repository / "live.json").read_bytes() == before


def test_the_live_version_and_a_damaged_one_are_refused(repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="is the live one"):
        run("shadow", "1")
    (repository / "fraud_fil" / "2" / "policy.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="was changed after it was published"):
        run("canary", "2")
    assert read_pointer(repository).trials == ()


def test_a_version_that_is_tried_is_not_pruned(repository: Path, small_training: Path) -> None:
    set_shadow(repository, "2")
    for _ in range(2):
        export_model(small_training, repository, n_parity_rows=50, make_live=False, keep=1)
    assert list_versions(repository) == ("1", "2", "4")  # live, shadow, newest


@pytest.mark.stack
def test_a_version_that_triton_does_not_serve_is_refused(repository: Path, stack: Any) -> None:
    export_url = stack.addresses.triton_url
    with pytest.raises(PublishError, match="not ready"):
        run(
            "canary",
            "99",
            "--triton",
            export_url,
            "--repository",
            str(_with_version_99(repository)),
        )
    assert read_pointer(repository).trials == ()


def _with_version_99(repository: Path) -> Path:
    """Rename the candidate, so that no Triton of any test serves it."""
    for entry in ("fraud_fil", "fraud_onnx", "fraud_fil_explain"):
        (repository / entry / "2").rename(repository / entry / "99")
    path = repository / "fraud_fil" / "99" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["artefacts"] = {n.replace("/2/", "/99/"): v for n, v in manifest["artefacts"].items()}
    path.write_text(json.dumps(manifest))
    return repository
