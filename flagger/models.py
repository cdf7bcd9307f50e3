"""Model versions on disk: what the doors read from the Triton model repository.

    model_repository/
      live.json                      the pointer: which version the doors ask for
      fraud_fil/config.pbtxt         one entry per backend, the same versions in all
      fraud_fil/<v>/                 xgboost.json, contract.json, policy.json, metrics.json,
                                     manifest.json (written by `export`)
      fraud_onnx/<v>/model.onnx
      fraud_fil_explain/<v>/         the same xgboost.json; answers why, asked for the flagged only

A version exists once its manifest does, and is never changed afterwards. Publishing, rolling back
and new thresholds change the pointer only (see `flagger.pointer`), so a door follows by reading it
again (see `flagger.live`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flagger.errors import ConfigurationError
from flagger.features.contract import FeatureContract
from flagger.files import file_sha256, write_atomically
from flagger.pointer import Pointer, change_pointer, in_force, read_pointer
from flagger.policy import Policy
from flagger.strict_json import read_json

__all__ = [
    "ENTRIES",
    "EXPLAIN_ENTRY",
    "FIL_ENTRY",
    "MANIFEST_FILE",
    "ONNX_ENTRY",
    "ModelVersion",
    "file_sha256",
    "list_versions",
    "live_version",
    "load_version",
    "previous_versions",
    "read_metrics",
    "require_version",
    "set_live_version",
    "version_folder",
    "write_atomically",
]

FIL_ENTRY = "fraud_fil"
ONNX_ENTRY = "fraud_onnx"
EXPLAIN_ENTRY = "fraud_fil_explain"
ENTRIES = (FIL_ENTRY, ONNX_ENTRY, EXPLAIN_ENTRY)
"""The model entries of the repository; all hold the same versions."""

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class ModelVersion:
    """One published version, checked against its checksums.

    Attributes:
        version: Triton's version folder: "1", "2", ...
        contract: Columns, category codes and label delay that the model expects.
        policy: Thresholds from score to decision that are in force: the version's own, or what
            `flagger policy set` put in their place.
        manifest: `artefacts` (sha256 by path in the repository), `xgboost_version`, `created_at`
            (RFC 3339), `feature_hash`, `git_revision`, `data_window` and `parity` (the proof that
            the exports agree).
        own_policy: The version's policy.json.
    """

    version: str
    contract: FeatureContract
    policy: Policy
    manifest: dict[str, Any]
    own_policy: Policy


def version_folder(repository: Path, version: str, entry: str = FIL_ENTRY) -> Path:
    """Return the folder of one version of one model entry; it need not exist."""
    return repository / entry / version


def list_versions(repository: Path) -> tuple[str, ...]:
    """Return the published versions, oldest first; empty if there is no repository yet."""
    manifests = (repository / FIL_ENTRY).glob(f"*/{MANIFEST_FILE}")
    return tuple(sorted((m.parent.name for m in manifests if m.parent.name.isdecimal()), key=int))


def load_version(repository: Path, version: str) -> ModelVersion:
    """Read one version and check that it is whole and fits this code.

    The booster itself is not loaded, so the version of xgboost that wrote it does not matter here.

    Raises:
        ConfigurationError: No such version, or one of its files is missing or was changed.
        ContractMismatchError: It was trained on other features than this code computes.
    """
    folder = version_folder(repository, version)
    require_version(repository, version)
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        checksums = {str(path): str(digest) for path, digest in manifest["artefacts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder / MANIFEST_FILE} is not a manifest ({error!r}). Export the model again."
        ) from error
    _check_artefacts(repository, version, checksums)
    contract = FeatureContract.from_json((folder / "contract.json").read_text(encoding="utf-8"))
    contract.require_current(str(folder))
    own = Policy.from_json((folder / "policy.json").read_text(encoding="utf-8"))
    return ModelVersion(
        version=version,
        contract=contract,
        policy=in_force(repository, version) or own,
        manifest=manifest,
        own_policy=own,
    )


def read_metrics(repository: Path, version: str) -> dict[str, Any]:
    """Return what the training of a version measured: its metrics.json.

    Raises:
        ConfigurationError: It cannot be read, or has numbers that are none.
    """
    path = version_folder(repository, version) / "metrics.json"
    try:
        metrics = read_json(path.read_text(encoding="utf-8"))
        if not isinstance(metrics, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} does not hold the measures of a training ({error}). Train and export the "
            f"model again."
        ) from error
    return metrics


def live_version(repository: Path) -> str:
    """Return the version that the doors ask for; cheap enough to poll every second.

    Raises:
        ConfigurationError: There is no pointer, or it is not readable.
    """
    return read_pointer(repository).version


def previous_versions(repository: Path) -> tuple[str, ...]:
    """Return the versions that were live before and still exist, the latest first."""
    existing = list_versions(repository)
    return tuple(v for v in read_pointer(repository).previous if v in existing)


def set_live_version(
    repository: Path,
    version: str,
    *,
    action: str = "publish",
    why: str = "",
    by: str | None = None,
) -> None:
    """Point the doors at a published version; a reader sees the old pointer or the new one.

    Setting the version that was live before the present one forgets the present one, so that
    rolling back twice goes back two versions. Action, why and by (None: the process's user) go
    to the audit.

    Raises:
        ConfigurationError: No such version.
    """
    with change_pointer(repository, action, why=why, by=by) as change:
        require_version(repository, version)  # under the lock: none is removed meanwhile
        before = change.before or Pointer(version)
        existing = {*list_versions(repository), before.version}
        kept = {v: p for v, p in before.policies.items() if v in existing}
        change.after = replace(before.moved_to(version), policies=kept)


def require_version(repository: Path, version: str) -> None:
    """Raise ConfigurationError, with those that exist, if there is no such version."""
    existing = list_versions(repository)
    if version not in existing:
        raise ConfigurationError(
            f"{repository} has no model version {version!r}; it has "
            f"{', '.join(existing) or 'none'}. Name one of these, or publish a model with "
            f"`flagger export`."
        )


def _check_artefacts(repository: Path, version: str, checksums: dict[str, str]) -> None:
    needed = {f"{FIL_ENTRY}/{version}/{name}" for name in ("contract.json", "policy.json")}
    if missing := needed - set(checksums):
        raise ConfigurationError(
            f"The manifest of model version {version} in {repository} does not cover "
            f"{', '.join(sorted(missing))}. Export the model again."
        )
    found = _files_of(repository, version)
    if unknown := found - set(checksums):
        raise ConfigurationError(
            f"{', '.join(sorted(unknown))} in {repository} was not there when model version "
            f"{version} was published: its manifest does not name it. Remove it, or export the "
            f"model again."
        )
    for name, checksum in checksums.items():
        path = repository / name
        if name not in found:
            raise ConfigurationError(
                f"{path} is missing from model version {version}. Export the model again."
            )
        if file_sha256(path) != checksum:
            raise ConfigurationError(
                f"{path} was changed after it was published (its SHA-256 differs from the "
                f"manifest's). Export the model again to publish a change as a new version."
            )


def _files_of(repository: Path, version: str) -> set[str]:
    """Return the paths in the repository of a version's files, without its manifest."""
    folders = [version_folder(repository, version, entry) for entry in ENTRIES]
    files = (path for folder in folders for path in folder.rglob("[!.]*") if path.is_file())
    manifest = version_folder(repository, version) / MANIFEST_FILE
    return {path.relative_to(repository).as_posix() for path in files if path != manifest}
