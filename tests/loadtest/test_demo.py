"""The demo's command, small: everything real, and its own checks hold."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from loadtest.demo_cli import demo
from loadtest.processes import FlaggerProcess
from train.simulate import SimulationConfig, simulate


@pytest.fixture
def late_producer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The live part's producer takes its time to start, as on a busy machine."""
    program = "import runpy, time; time.sleep(4); runpy.run_module('flagger', run_name='__main__')"
    (tmp_path / "late.py").write_text(program)

    def start(arguments: list[str], environment: dict[str, str], log: Path) -> FlaggerProcess:
        if arguments[0] == "produce" and "--rate" in arguments:
            found = environment | {"PYTHONPATH": str(tmp_path)}
            return FlaggerProcess(arguments, found, log, module="late")
        return FlaggerProcess(arguments, environment, log)

    monkeypatch.setattr("loadtest.demo.FlaggerProcess", start)


@pytest.mark.stack
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("late_producer")
def test_a_small_demo_runs_and_its_checks_hold(tmp_path: Path) -> None:
    data = tmp_path / "payments.parquet"
    size = SimulationConfig(customers=250, terminals=200, days=50, start=date(2026, 1, 1), seed=5)
    table = pa.Table.from_batches(simulate(size))
    pq.write_table(table, data)
    out = tmp_path / "run"
    arguments = ["--data", str(data), "--out", str(out), "--live", "2000", "--rate", "1000"]
    result = CliRunner().invoke(demo, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["in"] == summary["decided"] == table.num_rows
    assert summary["failures"] == []
    assert summary["different_features"] == 0
    assert summary["gateway_requests"] == 200
    assert summary["alerts"] > 0
    assert 0.7 < summary["model"]["roc_auc"] <= 1
    report = (out / "report.html").read_text()
    assert "All checks held" in report
    assert report.count("data:image/png;base64,") == 3
