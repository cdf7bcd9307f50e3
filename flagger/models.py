"""Model versions on disk: what the doors read from the Triton model repository.

    model_repository/
      live.json                      the pointer: which version the doors ask for
      fraud_fil/config.pbtxt         one entry per backend, the same versions in both
      fraud_fil/<v>/                 xgboost.json, contract.json, policy.json, metrics.json,
                                     manifest.json (written by `export`)
      fraud_onnx/<v>/model.onnx

A version exists once its manifest does, and is never changed afterwards. Publishing and rolling
back move the pointer only, so a door follows by reading `live_version` again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flagger.errors import ConfigurationError
from flagger.features.contract import FeatureContract
from flagger.policy import Policy

__all__ = [
    "ENTRIES",
    "FIL_ENTRY",
    "ONNX_ENTRY",
    "ModelVersion",
    "file_sha256",
    "list_versions",
    "live_version",
    "load_version",
    "previous_versions",
    "set_live_version",
    "version_folder",
    "write_atomically",
]

FIL_ENTRY = "fraud_fil"
ONNX_ENTRY = "fraud_onnx"
ENTRIES = (FIL_ENTRY, ONNX_ENTRY)
"""The model entries of the repository; both hold the same versions."""

_MANIFEST = "manifest.json"
_LIVE = "live.json"
_MAX_PREVIOUS = 20
"""Most earlier live versions that the pointer remembers for rolling back."""


@dataclass(frozen=True)
class ModelVersion:
    """One published version, checked against its checksums.

    Attributes:
        version: Triton's version folder: "1", "2", ...
        contract: Columns, category codes and label delay that the model expects.
        policy: Thresholds from score to decision.
        manifest: `artefacts` (sha256 by path in the repository), `xgboost_version`, `created_at`
            (RFC 3339), `feature_hash` and `parity` (the proof that the exports agree).
    """

    version: str
    contract: FeatureContract
    policy: Policy
    manifest: dict[str, Any]


def version_folder(repository: Path, version: str, entry: str = FIL_ENTRY) -> Path:
    """Return the folder of one version of one model entry; it need not exist."""
    return repository / entry / version


def list_versions(repository: Path) -> tuple[str, ...]:
    """Return the published versions, oldest first; empty if there is no repository yet."""
    manifests = (repository / FIL_ENTRY).glob(f"*/{_MANIFEST}")
    return tuple(sorted((m.parent.name for m in manifests if m.parent.name.isdecimal()), key=int))


def load_version(repository: Path, version: str) -> ModelVersion:
    """Read one version and check that it is whole and fits this code.

    The booster itself is not loaded, so the version of xgboost that wrote it does not matter here.

    Raises:
        ConfigurationError: No such version, or one of its files is missing or was changed.
        ContractMismatchError: It was trained on other features than this code computes.
    """
    folder = version_folder(repository, version)
    _require_version(repository, version)
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        checksums = {str(path): str(digest) for path, digest in manifest["artefacts"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{folder / _MANIFEST} is not a manifest ({error!r}). Export the model again."
        ) from error
    _check_artefacts(repository, version, checksums)
    contract = FeatureContract.from_json((folder / "contract.json").read_text(encoding="utf-8"))
    contract.require_current(str(folder))
    policy = Policy.from_json((folder / "policy.json").read_text(encoding="utf-8"))
    return ModelVersion(version=version, contract=contract, policy=policy, manifest=manifest)


def live_version(repository: Path) -> str:
    """Return the version that the doors ask for; cheap enough to poll every second.

    Raises:
        ConfigurationError: There is no pointer, or it is not readable.
    """
    return str(_read_pointer(repository)["version"])


def previous_versions(repository: Path) -> tuple[str, ...]:
    """Return the versions that were live before and still exist, the latest first."""
    existing = list_versions(repository)
    return tuple(v for v in _read_pointer(repository)["previous"] if v in existing)


def set_live_version(repository: Path, version: str) -> None:
    """Point the doors at a published version; a reader sees the old pointer or the new one.

    Setting the version that was live before the present one forgets the present one, so that
    rolling back twice goes back two versions.

    Raises:
        ConfigurationError: No such version.
    """
    _require_version(repository, version)
    previous: list[str] = []
    if (repository / _LIVE).exists():
        pointer = _read_pointer(repository)
        previous = [pointer["version"], *pointer["previous"]]
    if version in previous:
        previous = previous[previous.index(version) + 1 :]
    pointer = {
        "version": version,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "previous": previous[:_MAX_PREVIOUS],
    }
    write_atomically(repository / _LIVE, json.dumps(pointer, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it sees the old text or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)  # mkstemp's 0600 would lock out a server of another user
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_version(repository: Path, version: str) -> None:
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
    for name, checksum in checksums.items():
        path = repository / name
        if not path.is_file():
            raise ConfigurationError(
                f"{path} is missing from model version {version}. Export the model again."
            )
        if file_sha256(path) != checksum:
            raise ConfigurationError(
                f"{path} was changed after it was published (its SHA-256 differs from the "
                f"manifest's). Export the model again to publish a change as a new version."
            )


def _read_pointer(repository: Path) -> dict[str, Any]:
    path = repository / _LIVE
    try:
        pointer = json.loads(path.read_text(encoding="utf-8"))
        return {
            "version": str(pointer["version"]),
            "previous": [str(version) for version in pointer["previous"]],
        }
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist, so no model version is live. Run `flagger export` to publish "
            f"a trained model."
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} cannot be read as a pointer to a model version ({error!r}). Remove it and "
            f"publish a model with `flagger export`."
        ) from error
