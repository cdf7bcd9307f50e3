"""Two results side by side: what counts as worse, and what cannot be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flagger.cli import cli
from flagger.errors import DataError
from loadtest.bench_compare import compare_results, markdown
from loadtest.bench_result import BenchResult


def result(folder: Path, figures: dict[str, tuple[str, list[float]]], **settings: Any) -> Path:
    made = BenchResult("stream-prefilled", {"partitions": 4, **settings})
    for name, (unit, runs) in figures.items():
        for value in runs:
            made.add(name, value, unit)
    return made.write(folder)


@pytest.mark.parametrize(
    ("old", "new", "worse"),
    [
        ([100, 101, 102], [80, 81, 82], True),
        ([100, 101, 102], [96, 97, 98], False),  # separated, inside the tolerance
        ([70, 100, 101], [75, 80, 81], False),  # left the tolerance, the runs overlap
        ([100, 101, 102], [150, 151, 152], False),  # better
    ],
)
def test_worse_is_beyond_tolerance_and_noise(
    tmp_path: Path, old: list[float], new: list[float], worse: bool
) -> None:
    base = result(tmp_path / "a", {"stream": ("tx/s", old)})
    now = result(tmp_path / "b", {"stream": ("tx/s", new)})
    (change,) = compare_results(base, now, 0.1)
    assert change.is_worse is worse
    # The same runs as durations: fewer are better.
    base = result(tmp_path / "c", {"p99": ("ms", old)})
    now = result(tmp_path / "d", {"p99": ("ms", new)})
    (change,) = compare_results(base, now, 0.1)
    assert change.is_worse is (min(new) > max(old) and change.new > 1.1 * change.base)


def test_the_command_tells_by_its_exit_code(tmp_path: Path) -> None:
    base = result(tmp_path / "a", {"stream": ("tx/s", [100, 101, 102]), "seen": ("", [1, 1, 1])})
    now = result(tmp_path / "b", {"stream": ("tx/s", [80, 81, 82]), "seen": ("", [2, 2, 2])})
    done = CliRunner().invoke(cli, ["bench", "compare", str(base), str(now)])
    assert done.exit_code == 1, done.output
    assert "| stream | tx/s | 101 | 81 | -19.8% | **worse** |" in done.output
    assert "seen" not in done.output  # its unit has no direction
    assert "1 of 1 figures are worse" in done.output
    done = CliRunner().invoke(cli, ["bench", "compare", str(base), str(now), "--tolerance", "0.3"])
    assert done.exit_code == 0, done.output


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    base = result(tmp_path / "a", {"stream": ("tx/s", [1, 2, 3])})
    other = result(tmp_path / "b", {"stream": ("tx/s", [1, 2, 3])}, partitions=8)
    with pytest.raises(DataError, match="another settings"):
        compare_results(base, other, 0.1)
    few = result(tmp_path / "c", {"stream": ("tx/s", [1, 2])})
    with pytest.raises(DataError, match=r"--repeats 3"):
        compare_results(base, few, 0.1)
    with pytest.raises(DataError, match="no figure 'p99'"):
        compare_results(base, base, 0.1, ["p99"])
    moved = json.loads(base.read_text())
    moved["machine"]["cores"] = 1_000
    (tmp_path / "d.json").write_text(json.dumps(moved))
    with pytest.raises(DataError, match="another machine"):
        compare_results(base, tmp_path / "d.json", 0.1)
    (tmp_path / "e.json").write_text("{}")
    with pytest.raises(DataError, match="no benchmark result"):
        compare_results(base, tmp_path / "e.json", 0.1)


def test_our_stored_results_can_be_compared() -> None:
    folder = Path(__file__).parents[2] / "loadtest" / "results"
    stored = folder / "stream-prefilled.json"
    changes = compare_results(stored, stored, 0.0, ["stream", "streamer's CPU"])
    assert [change.is_worse for change in changes] == [False, False]
    assert "+0.0% | fine" in markdown(changes, 0.0)
