"""Versions and config files in the model repository: placed by a rename, removed whole.

Triton reloads a served version when a file in its folder is newer than at the last load, or when
anything else in the entry's folder but config.pbtxt is. So a version's folder is never written to
again, no staging folder is left behind, and config files are written only if they differ.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flagger.errors import ConfigurationError, PublishError
from flagger.features import FeatureContract
from flagger.files import exclusive
from flagger.models import (
    ENTRIES,
    FIL_ENTRY,
    MANIFEST_FILE,
    file_sha256,
    list_versions,
    version_folder,
    write_atomically,
)

__all__ = [
    "next_version",
    "one_export",
    "place",
    "remove",
    "require_same_columns",
    "write_configs",
]

_STAGING = ".staging-"


def next_version(repository: Path) -> str:
    """Return the number after the highest that any entry has, whole or not."""
    folders = [folder for entry in ENTRIES for folder in (repository / entry).glob("*")]
    return str(max((int(f.name) for f in folders if f.name.isdecimal()), default=0) + 1)


@contextmanager
def one_export(repository: Path) -> Iterator[None]:
    """Let one export at a time number, write and prune versions; another one waits.

    What a killed export left in staging goes.

    Raises:
        PublishError: The repository cannot be written.
    """
    try:
        for entry in ENTRIES:
            (repository / entry).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PublishError(
            f"{repository} cannot be written: {error}. Check the repository's path, permissions "
            f"and free space."
        ) from error
    with exclusive(repository / FIL_ENTRY):
        for entry in ENTRIES:
            for left in (repository / entry).glob(f"{_STAGING}*"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def require_same_columns(repository: Path, n_features: int) -> None:
    """Raise PublishError if a version takes another number of columns.

    All versions of an entry share one config.pbtxt, which states it.
    """
    for version in list_versions(repository):
        path = version_folder(repository, version) / "contract.json"
        try:
            columns = len(FeatureContract.from_json(path.read_text(encoding="utf-8")).names)
        except (OSError, ConfigurationError) as error:
            raise PublishError(
                f"Version {version} in {repository} is damaged, so its columns are not known "
                f"({error}). Remove its folders from {', '.join(ENTRIES)}."
            ) from error
        if columns != n_features:
            raise PublishError(
                f"Version {version} in {repository} takes {columns} columns and the new model "
                f"{n_features}; Triton cannot serve both in one entry. Publish into another folder "
                f"(--repository) and start Triton and the doors on that."
            )


def place(
    repository: Path,
    version: str,
    contents: Mapping[str, Mapping[str, bytes]],
    facts: Mapping[str, Any],
) -> None:
    """Write a new version: staged in its entries' folders, then renamed into place.

    Args:
        repository: The model repository.
        version: Number of the new version.
        contents: Bytes of each file, by entry and name, without the manifest.
        facts: What the manifest says beside the checksums.

    Raises:
        PublishError: The files cannot be written, or the version exists already; nothing is left.
    """
    staged: dict[str, Path] = {}
    placed: list[Path] = []
    checksums: dict[str, str] = {}
    try:
        for entry, files in contents.items():
            staged[entry] = Path(tempfile.mkdtemp(dir=repository / entry, prefix=_STAGING))
            staged[entry].chmod(0o755)  # Triton may run as another user
            for name, content in files.items():
                _write(staged[entry] / name, content)
                checksums[f"{entry}/{version}/{name}"] = file_sha256(staged[entry] / name)
        manifest = json.dumps({**facts, "artefacts": checksums}, indent=2, allow_nan=False) + "\n"
        _write(staged[FIL_ENTRY] / MANIFEST_FILE, manifest.encode())
        # The manifest's entry last: from then on the version exists.
        for entry in sorted(contents, key=lambda name: name == FIL_ENTRY):
            folder = version_folder(repository, version, entry)
            staged[entry].rename(folder)
            placed.append(folder)
    except OSError as error:
        for folder in placed:
            shutil.rmtree(folder, ignore_errors=True)
        raise PublishError(
            f"Version {version} could not be written to {repository}: {error}. If another export "
            f"was running, run this one again; else check the folder's permissions and free space."
        ) from error
    finally:
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    """Write a file to the disk itself: the pointer to it must not survive a power cut alone."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def remove(repository: Path, version: str) -> None:
    """Take a version away from all entries; the manifest first: from then on there is none."""
    with suppress(OSError):
        (version_folder(repository, version) / MANIFEST_FILE).unlink()
    for entry in ENTRIES:
        shutil.rmtree(version_folder(repository, version, entry), ignore_errors=True)


def write_configs(repository: Path, configs: Mapping[Path, str | None]) -> dict[Path, str | None]:
    """Write the config files that differ (None: remove); return what was there before.

    All or none: where one cannot be written, those before it are put back.

    Raises:
        PublishError: A file cannot be written.
    """
    before: dict[Path, str | None] = {}
    for name, text in configs.items():
        path = repository / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = path.read_text(encoding="utf-8") if path.exists() else None
            if found == text:
                continue
            before[name] = found
            if text is None:
                path.unlink()
            else:
                write_atomically(path, text)
        except OSError as error:
            before.pop(name, None)  # it is as it was
            with suppress(PublishError):  # the first error is the one that counts
                write_configs(repository, before)
            raise PublishError(
                f"{path} cannot be written: {error}. Check the repository's path, permissions and "
                f"free space."
            ) from error
    return before
