"""Files of a version: on the disk and whole before it has its name, gone with the first of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from export.layout import one_export, place, remove
from flagger.errors import PublishError
from flagger.models import list_versions

CONTENTS = {"fraud_fil": {"xgboost.json": b"{}"}, "fraud_onnx": {"model.onnx": b"graph"}}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with version 1."""
    with one_export(tmp_path):
        place(tmp_path, "1", CONTENTS, {})
    return tmp_path


def files_of(repository: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def test_a_version_of_another_export_is_never_overwritten(repository: Path) -> None:
    before = files_of(repository)
    with pytest.raises(PublishError, match="If another export was running, run this one again"):
        place(repository, "1", {"fraud_fil": {"xgboost.json": b"[]"}}, {})
    assert files_of(repository) == before


def test_a_version_is_on_the_disk_before_it_has_its_name(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer to it is; after a power cut it must not name empty files."""
    synced: set[int] = set()

    def sync(handle: int) -> None:
        assert list_versions(repository) == ("1",)
        synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr("export.layout.os.fsync", sync)
    place(repository, "2", CONTENTS, {})
    files = [path for path in repository.rglob("2/*") if path.is_file()]
    assert {path.stat().st_ino for path in files} == synced
    assert len(files) == 3


def test_what_a_killed_export_left_in_staging_goes(repository: Path) -> None:
    (repository / "fraud_onnx" / ".staging-x").mkdir()
    with one_export(repository):
        assert not list(repository.rglob(".staging*"))


def test_a_version_that_is_half_removed_is_none(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("export.layout.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(repository, "1")
    assert list_versions(repository) == ()
