"""What `flagger train` left in its output folder, read and checked for export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from export.tradeoff import TRADE_OFF_FILE, trade_off
from flagger.errors import ConfigurationError, PublishError
from flagger.feature_sample import SAMPLE_FILE, read_sample
from flagger.features import FeatureContract
from flagger.policy import Policy
from flagger.strict_json import read_json
from flagger.training_files import require_one_training

__all__ = ["SAMPLE_FILE", "Training", "read_training", "sample_rows"]

_FILES = ("model.json", "contract.json", "policy.json", "metrics.json")
_SCORES = "scores.parquet"
_DAYS = ("train_from", "train_to", "test_from", "test_to")
_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        model_file: The booster.
        contract: Columns and category codes of the training rows; those of this code.
        documents: Text of contract.json, policy.json and metrics.json by file name, and of
            thresholds.json (see `tradeoff`) if training left the scores of its test window.
        data_window: First and last days of what was learned from and judged on, from metrics.json.
        sample_rows: Feature rows of real transactions, float32 [n, F], or None if training left
            none.
    """

    model_file: Path
    contract: FeatureContract
    documents: dict[str, str]
    sample_rows: npt.NDArray[np.float32] | None
    data_window: dict[str, Any]


def read_training(folder: Path) -> Training:
    """Read the output folder of a training.

    Raises:
        PublishError: A file is missing or damaged, or the files are of different trainings.
        ContractMismatchError: The model was trained on other features than this code computes.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise PublishError(
            f"{folder} is not the output of a finished training: {', '.join(missing)} missing. "
            f"Run `flagger train ... --out {folder}`."
        )
    documents = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES[1:]}
    contract = _read(folder / "contract.json", documents, FeatureContract.from_json)
    contract.require_current(str(folder))
    _read(folder / "policy.json", documents, Policy.from_json)
    windows = _read(folder / "metrics.json", documents, _windows_of)
    require_one_training(folder, read_json(documents["metrics.json"]))
    if table := trade_off(folder / _SCORES):
        documents[TRADE_OFF_FILE] = table
    return Training(
        model_file=folder / "model.json",
        contract=contract,
        documents=documents,
        sample_rows=sample_rows(folder / SAMPLE_FILE, contract.names),
        data_window=windows,
    )


def _windows_of(text: str) -> dict[str, str]:
    """Return the days of metrics.json; drift and retraining take them for what the model has seen.

    Raises:
        ConfigurationError: They are missing, are no days or are out of order, or no measures of the
            test window stand beside them.
    """
    metrics = read_json(text)
    if not isinstance(metrics, dict):
        raise ConfigurationError("Not a JSON object.")
    for name in ("windows", "test"):
        if not isinstance(metrics.get(name), dict) or not metrics[name]:
            raise ConfigurationError(f"The object {name!r} is missing or empty.")
    windows: dict[str, str] = metrics["windows"]
    days = []
    for name in _DAYS:
        try:
            days.append(date.fromisoformat(windows[name]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"windows.{name} must be a day such as 2026-01-31, not {windows.get(name)!r}."
            ) from error
    if days != sorted(days):
        raise ConfigurationError(f"The days of 'windows' are out of order: {', '.join(_DAYS)}.")
    return windows


def _read(path: Path, documents: dict[str, str], read: Callable[[str], _Read]) -> _Read:
    """Return what a document says; an error names the file and the way out."""
    try:
        return read(documents[path.name])
    except (ConfigurationError, ValueError) as error:
        raise PublishError(
            f"{path} cannot be read: {error} Run `flagger train` again, or take the file from the "
            f"training's own output."
        ) from error


def sample_rows(path: Path, names: tuple[str, ...]) -> npt.NDArray[np.float32] | None:
    """Read feature rows of real transactions, float32 [n, F]; None if there is no such file.

    Raises:
        PublishError: The file lacks the columns.
    """
    try:
        return read_sample(path, names)
    except ConfigurationError as error:
        raise PublishError(str(error)) from error
