"""The feature sample: read as it is, without pandas, and refused where columns are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flagger.errors import ConfigurationError
from flagger.feature_sample import SAMPLE_FILE, read_sample


def write(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_columns_come_in_the_asked_order_and_null_is_nan(tmp_path: Path) -> None:
    file = write(
        tmp_path / SAMPLE_FILE,
        a=pa.array([1, None, 3]),
        b=pa.array([1.5, float("nan"), None], pa.float64()),
        c=pa.array([0, 0, 0]),
    )
    found = read_sample(file, ("b", "a"))
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [[1.5, 1], [np.nan, np.nan], [np.nan, 3]])


def test_no_file_is_none_and_no_rows_are_no_rows(tmp_path: Path) -> None:
    assert read_sample(tmp_path / SAMPLE_FILE, ("a",)) is None
    found = read_sample(write(tmp_path / "empty", a=pa.array([], pa.float32())), ("a",))
    assert found is not None
    assert found.shape == (0, 1)


@pytest.mark.parametrize("names", [("a", "missing"), ("words",)])
def test_other_columns_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    file = write(tmp_path / SAMPLE_FILE, a=pa.array([1.0]), words=pa.array(["x"]))
    with pytest.raises(ConfigurationError, match="does not hold the model's feature columns"):
        read_sample(file, names)


def test_pandas_stays_out_of_the_streamer(tmp_path: Path) -> None:
    file = write(tmp_path / SAMPLE_FILE, a=pa.array([1.0, None]))
    code = (
        "import sys; from pathlib import Path; import streamer.pipeline\n"
        "from flagger.feature_sample import read_sample\n"
        f"read_sample(Path({str(file)!r}), ('a',)); sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
