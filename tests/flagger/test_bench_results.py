"""What a benchmark wrote is read again; what it did not write is told with file and remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flagger.bench_results import StoredResult
from flagger.errors import DataError
from loadtest.bench_result import BenchResult, machine

STORED = sorted((Path(__file__).parents[2] / "loadtest" / "results").glob("*.json"))
REMEDY = "Measure again."


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_the_committed_results_are_read(path: Path) -> None:
    found = StoredResult.load(path, REMEDY)
    assert found.scenario == path.stem
    assert all(figure.runs for figure in found.figures.values())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    made = BenchResult("latency-2000", {"rate_per_s": 2_000.0, "partitions": 4})
    for value in (3, 1.5, 2):
        made.add("p50", value, "ms")
    made.add("p99", math.nan, "ms")  # nothing was measured
    found = StoredResult.load(made.write(tmp_path), REMEDY)
    assert (found.rate_per_s, found.settings["partitions"]) == (2_000.0, 4)
    assert found.figure("p50").runs == (3.0, 1.5, 2.0)
    assert (found.median("p50"), found.figure("p50").unit) == (2.0, "ms")
    assert math.isnan(found.median("p99"))
    assert found.machine.cores == machine()["cores"]
    with pytest.raises(DataError, match=r"latency-2000\.json: has no figure 'p95', only p50, p99"):
        found.median("p95")


def test_what_is_no_result_is_refused(tmp_path: Path) -> None:
    made = BenchResult("stream", {})
    made.add("stream", 1.0, "tx/s")
    path = made.write(tmp_path)
    with pytest.raises(DataError, match=r"no rate_per_s in its settings\. Measure again"):
        _ = StoredResult.load(path, REMEDY).rate_per_s
    content: dict[str, Any] = json.loads(path.read_text())
    content["figures"]["stream"]["median"] = "1"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"is no benchmark result .*median"):
        StoredResult.load(path, REMEDY)
    with pytest.raises(DataError, match=r"cannot be read .* Measure again"):
        StoredResult.load(tmp_path / "nothing.json", REMEDY)
