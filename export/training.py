"""What `flagger train` left in its output folder, read and checked for export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flagger.errors import PublishError
from flagger.features import FeatureContract
from flagger.policy import Policy

__all__ = ["Training", "read_training"]

_FILES = ("model.json", "contract.json", "policy.json", "metrics.json")
_SAMPLE = "feature_sample.parquet"
"""Optional: feature rows of real transactions, one column per feature of the contract."""


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        model_file: The booster.
        contract: Columns and category codes of the training rows; those of this code.
        documents: Text of contract.json, policy.json and metrics.json by file name.
        sample_rows: Feature rows of real transactions, float32 [n, F], or None if training left
            none.
    """

    model_file: Path
    contract: FeatureContract
    documents: dict[str, str]
    sample_rows: npt.NDArray[np.float32] | None


def read_training(folder: Path) -> Training:
    """Read the output folder of a training.

    Raises:
        PublishError: A file is missing or damaged.
        ConfigurationError: contract.json or policy.json cannot be read.
        ContractMismatchError: The model was trained on other features than this code computes.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise PublishError(
            f"{folder} is not the output of a finished training: {', '.join(missing)} missing. "
            f"Run `flagger train ... --out {folder}`."
        )
    documents = {name: (folder / name).read_text(encoding="utf-8") for name in _FILES[1:]}
    contract = FeatureContract.from_json(documents["contract.json"])
    contract.require_current(str(folder))
    Policy.from_json(documents["policy.json"])
    try:
        json.loads(documents["metrics.json"])
    except ValueError as error:
        raise PublishError(
            f"{folder / 'metrics.json'} is not JSON ({error}). Run `flagger train` again."
        ) from error
    return Training(
        model_file=folder / "model.json",
        contract=contract,
        documents=documents,
        sample_rows=_sample_rows(folder / _SAMPLE, contract.names),
    )


def _sample_rows(path: Path, names: tuple[str, ...]) -> npt.NDArray[np.float32] | None:
    if not path.is_file():
        return None
    try:
        table = pq.read_table(path, columns=list(names)).select(list(names))
        columns = [column.to_numpy(zero_copy_only=False) for column in table.columns]
        return np.stack(columns, axis=1).astype(np.float32)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise PublishError(
            f"{path} does not hold the model's feature columns ({error}). Run `flagger train` "
            f"again, or remove the file to prove the export on built rows alone."
        ) from error
