"""Model versions on disk: whole or refused, and a pointer that is old or new, never half."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from flagger.errors import ConfigurationError, ContractMismatchError
from flagger.features import CATEGORY_FIELDS, FeatureContract
from flagger.models import (
    file_sha256,
    list_versions,
    live_version,
    load_version,
    previous_versions,
    set_live_version,
    write_atomically,
)
from flagger.policy import Policy

CONTRACT = FeatureContract({field: ("EUR", "ü") for field in CATEGORY_FIELDS}, label_delay_days=3)


def publish(repository: Path, version: str, contract: FeatureContract = CONTRACT) -> Path:
    folder = repository / "fraud_fil" / version
    onnx = repository / "fraud_onnx" / version / "model.onnx"
    folder.mkdir(parents=True)
    onnx.parent.mkdir(parents=True)
    onnx.write_bytes(b"graph")
    (folder / "xgboost.json").write_text("{}")
    (folder / "contract.json").write_text(contract.to_json(), encoding="utf-8")
    (folder / "policy.json").write_text(
        '{"policy_version": "p7", "review_threshold": 0.4, "decline_threshold": 0.8}'
    )
    artefacts = [onnx, *folder.iterdir()]
    sums = {path.relative_to(repository).as_posix(): file_sha256(path) for path in artefacts}
    manifest = {"artefacts": sums, "xgboost_version": "99.0.0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_version_brings_contract_policy_and_manifest(tmp_path: Path) -> None:
    publish(tmp_path, "1")
    found = load_version(tmp_path, "1")
    assert found.version == "1"
    assert found.contract == CONTRACT
    assert found.policy == Policy("p7", 0.4, 0.8)
    # The doors do not load the booster, so a newer XGBoost than theirs is recorded, not refused.
    assert found.manifest["xgboost_version"] == "99.0.0"


def test_versions_are_listed_oldest_first_and_only_whole_ones(tmp_path: Path) -> None:
    assert list_versions(tmp_path) == ()
    for version in ("10", "9", "2"):
        publish(tmp_path, version)
    publish(tmp_path, ".staging-11")
    (publish(tmp_path, "12") / "manifest.json").unlink()
    assert list_versions(tmp_path) == ("2", "9", "10")


def test_an_unknown_version_is_answered_with_those_that_exist(tmp_path: Path) -> None:
    publish(tmp_path, "1")
    publish(tmp_path, "2")
    with pytest.raises(ConfigurationError, match=r"no model version '7'; it has 1, 2"):
        load_version(tmp_path, "7")
    with pytest.raises(ConfigurationError, match=r"it has 1, 2"):
        set_live_version(tmp_path, "7")
    with pytest.raises(ConfigurationError, match=r"it has none.*flagger export"):
        load_version(tmp_path / "empty", "1")


@pytest.mark.parametrize(
    "name",
    ["fraud_fil/1/xgboost.json", "fraud_onnx/1/model.onnx", "fraud_fil/1/policy.json"],
)
def test_a_changed_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    publish(tmp_path, "1")
    path = tmp_path / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigurationError, match="was changed after it was published") as error:
        load_version(tmp_path, "1")
    assert str(path) in str(error.value)
    path.unlink()
    with pytest.raises(ConfigurationError, match=r"is missing from model version 1"):
        load_version(tmp_path, "1")


def test_a_manifest_that_does_not_cover_the_policy_is_refused(tmp_path: Path) -> None:
    manifest = publish(tmp_path, "1") / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["artefacts"]["fraud_fil/1/policy.json"]
    manifest.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match=r"does not cover fraud_fil/1/policy\.json"):
        load_version(tmp_path, "1")


@pytest.mark.parametrize(
    "name", ["fraud_fil/1/thresholds.json", "fraud_fil_explain/1/xgboost.json", "fraud_fil/1/a/b"]
)
def test_a_file_that_the_manifest_does_not_name_is_refused(tmp_path: Path, name: str) -> None:
    """Triton, `policy set` or the drift watch would read it."""
    publish(tmp_path, "1")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    with pytest.raises(ConfigurationError, match=f"{name} in .* was not there when"):
        load_version(tmp_path, "1")
    path.unlink()
    (tmp_path / "fraud_fil" / "1" / ".DS_Store").write_text("")  # nobody reads hidden files
    assert load_version(tmp_path, "1").version == "1"


def test_a_manifest_names_files_of_its_own_version_only(tmp_path: Path) -> None:
    for version in ("1", "2"):
        manifest = publish(tmp_path, version) / "manifest.json"
    document = json.loads(manifest.read_text())
    for name in ("fraud_fil/1/policy.json", "fraud_fil/2/../1/policy.json"):
        other = {name: file_sha256(tmp_path / name)}
        manifest.write_text(json.dumps({"artefacts": document["artefacts"] | other}))
        with pytest.raises(ConfigurationError, match="is missing from model version 2"):
            load_version(tmp_path, "2")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"artefacts": 3}', "\x00"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (publish(tmp_path, "1") / "manifest.json").write_text(text)
    with pytest.raises(ConfigurationError, match="is not a manifest"):
        load_version(tmp_path, "1")


def test_a_model_of_another_feature_catalogue_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, "1", FeatureContract(CONTRACT.vocabularies, hash="0123456789abcdef"))
    with pytest.raises(ContractMismatchError, match="0123456789abcdef"):
        load_version(tmp_path, "1")


def test_without_a_pointer_the_error_says_what_to_run(tmp_path: Path) -> None:
    publish(tmp_path, "1")
    with pytest.raises(ConfigurationError, match=r"no model version is live.*flagger export"):
        live_version(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '"1"', "[1]"])
def test_a_damaged_pointer_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "live.json").write_text(text)
    with pytest.raises(ConfigurationError, match="cannot be read as a pointer"):
        live_version(tmp_path)


def test_the_pointer_remembers_the_way_back(tmp_path: Path) -> None:
    for version in ("1", "2", "3"):
        publish(tmp_path, version)
        set_live_version(tmp_path, version)
    assert live_version(tmp_path) == "3"
    assert previous_versions(tmp_path) == ("2", "1")

    set_live_version(tmp_path, "2")  # roll back: 3 is bad and not a version to return to
    assert previous_versions(tmp_path) == ("1",)
    publish(tmp_path, "4")
    set_live_version(tmp_path, "4")
    assert previous_versions(tmp_path) == ("2", "1")
    set_live_version(tmp_path, "4")
    assert previous_versions(tmp_path) == ("2", "1")

    (tmp_path / "fraud_fil" / "2" / "manifest.json").unlink()
    assert previous_versions(tmp_path) == ("1",)


def test_a_reader_never_sees_half_a_pointer(tmp_path: Path) -> None:
    for version in ("1", "2"):
        publish(tmp_path, version)
    set_live_version(tmp_path, "1")
    seen: set[str] = set()
    failures: list[BaseException] = []
    stop = threading.Event()

    def read() -> None:
        try:
            while not stop.is_set():
                seen.add(live_version(tmp_path))
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(200):
        set_live_version(tmp_path, str(turn % 2 + 1))
    stop.set()
    reader.join()
    assert not failures
    assert seen == {"1", "2"}
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "live.json"
    write_atomically(path, "old")

    def full_disk(_: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_another_user_may_read_the_pointer(tmp_path: Path) -> None:
    write_atomically(tmp_path / "live.json", "x")
    assert (tmp_path / "live.json").stat().st_mode & 0o777 == 0o644
