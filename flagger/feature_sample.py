"""A version's `feature_sample.parquet`: real feature rows, for proofs, comparisons and drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from flagger.errors import ConfigurationError

__all__ = ["SAMPLE_FILE", "read_sample"]

SAMPLE_FILE = "feature_sample.parquet"
"""One column per feature of the contract."""


def read_sample(path: Path, names: tuple[str, ...]) -> npt.NDArray[np.float32] | None:
    """Read feature rows of real transactions, float32 [n, F]; None if there is no such file.

    Raises:
        ConfigurationError: The file lacks the columns.
    """
    if not path.is_file():
        return None
    try:
        table = pq.ParquetFile(path).read(columns=list(names)).select(list(names)).combine_chunks()
        return np.stack([_values(column) for column in table.columns], axis=1)
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ConfigurationError(
            f"{path} does not hold the model's feature columns ({error}). Run `flagger train` "
            f"again, or remove the file to prove the export on built rows alone."
        ) from error


def _values(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return a column of one chunk, float32 [n], null as NaN.

    Not by `to_numpy`, which imports pandas: a second of a streamer's start.
    """
    values = np.full(len(column), np.nan, dtype=np.float32)
    if len(column):
        known = column.chunk(0).cast(pa.float32())
        is_known = np.from_dlpack(known.is_valid().cast(pa.uint8())).astype(np.bool_)
        values[is_known] = np.from_dlpack(known.drop_null())
    return values
