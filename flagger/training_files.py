"""Which files belong to one training: metrics.json, written last, names the others by checksum.

A folder may hold files of two trainings: one that was interrupted while it replaced another's, or
files that were copied together. They would fit each other by name and width, and decide wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagger.errors import PublishError
from flagger.files import file_sha256
from flagger.strict_json import read_json

__all__ = ["BOUND_FILES", "bind_files", "checksums_of", "require_one_training"]

BOUND_FILES = (
    "model.json",
    "contract.json",
    "policy.json",
    "scores.parquet",
    "feature_sample.parquet",
)
"""What `flagger export` reads beside metrics.json."""


def checksums_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each of `BOUND_FILES` that is there: `files` of metrics.json."""
    return {name: file_sha256(folder / name) for name in BOUND_FILES if (folder / name).is_file()}


def bind_files(folder: Path) -> None:
    """Write `checksums_of` a folder into the metrics.json that is there."""
    path = folder / "metrics.json"
    metrics = read_json(path.read_text(encoding="utf-8")) | {"files": checksums_of(folder)}
    path.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def require_one_training(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Check that the files of a folder are those that its metrics.json was written with.

    Args:
        folder: Output folder of a training. Files may be missing.
        metrics: Content of its metrics.json.

    Raises:
        PublishError: metrics.json names no checksums, or a file is another training's.
    """
    known = metrics.get("files")
    if not isinstance(known, dict):
        raise PublishError(
            f"{folder / 'metrics.json'} does not say which files belong to it (the object 'files' "
            f"is missing): an earlier release wrote it. Run `flagger train` again."
        )
    others = [name for name, digest in checksums_of(folder).items() if known.get(name) != digest]
    if others:
        raise PublishError(
            f"{', '.join(others)} in {folder} and metrics.json are of different trainings, or were "
            f"changed since. Run `flagger train` again, or take all files from one output folder; "
            f"other thresholds are set after the export, with `flagger policy set`."
        )
