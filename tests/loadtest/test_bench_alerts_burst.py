"""The burst benchmark: what is lost or comes too often fails it, on the real stack."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

from deploy.local.stack import LocalStack
from flagger.settings import Settings
from loadtest import bench_alerts_burst as burst
from loadtest import bench_cli
from loadtest.alert_sinks import Told
from train.simulate import SimulationConfig, simulate

FLAGS = 400


@pytest.fixture(scope="module")
def table() -> pa.Table:
    size = SimulationConfig(customers=200, terminals=100, days=10, start=date(2026, 1, 1), seed=8)
    return pa.Table.from_batches(simulate(size))


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_what_is_kept_passes_and_a_lost_case_or_too_many_messages_fail_the_command(
    stack: LocalStack,
    servers: Settings,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the second run the database drops a case, and the rule promised no message at all."""
    monkeypatch.setattr(burst, "WARM_UP_FLAGS", 50)
    monkeypatch.setattr(burst, "DIGEST_EVERY_S", 1.0)
    monkeypatch.setattr(bench_cli, "_table", lambda *_: table)
    monkeypatch.setenv("FLAGGER_MODEL_REPOSITORY", str(stack.model_repository))
    victim = table["transaction_id"][FLAGS + 100].as_py()

    def spoil_the_second(step: str) -> None:
        if not step.startswith("run 2"):
            return
        monkeypatch.setattr(burst, "ARRIVE_S", 8.0)
        monkeypatch.setattr(burst, "most_messages", lambda _: 0.0)
        with closing(sqlite3.connect(tmp_path / "alerts-burst" / "cases.db")) as database:
            database.execute(
                "CREATE TRIGGER lose AFTER INSERT ON cases "
                f"BEGIN DELETE FROM cases WHERE transaction_id = '{victim}'; END"
            )
            database.commit()

    def on_servers(**arguments: Any) -> object:
        tell = arguments.pop("on_step")

        def on_step(step: str) -> None:
            spoil_the_second(step)
            tell(step)

        return burst.bench_alerts_burst(**arguments, on_step=on_step, servers=servers)

    monkeypatch.setattr(bench_cli, "bench_alerts_burst", on_servers)
    options = ["--rate", "0", "--burst", str(FLAGS), "--repeats", "2", "--out", str(tmp_path)]
    ran = CliRunner().invoke(bench_cli.bench, ["alerts", *options])
    assert ran.exit_code == 1
    written = json.loads((tmp_path / "alerts-burst.json").read_text())
    figures = {name: figure["runs"] for name, figure in written["figures"].items()}
    assert figures["flags"] == [FLAGS, FLAGS]
    assert figures["cases on the desk"] == [FLAGS, FLAGS - 1]
    assert figures["flags lost from the desk"] == [0, 1]
    assert figures["flags given to the desk again"] == [0, 0]
    for sink in ("webhook", "mail"):
        assert figures[f"alerts told to {sink}"] == [FLAGS, FLAGS]
        messages = figures[f"messages to {sink}"][0]
        assert 0 < messages <= figures["messages that the rule lets through"][0]
    lost, *too_many = written["settings"]["reasons"]
    assert lost == f"run 2: 1 of 400 flags did not become a case on the desk, first {victim}."
    assert len(too_many) == 2, too_many  # both receivers, however few messages tell them of all
    assert all("the rule lets 0 through" in reason for reason in too_many), too_many
    assert all(f"FAIL: {reason}" in ran.output for reason in (lost, *too_many))


KEPT = burst.Seen(
    sent=["a", "b", "c"],
    flagged=["c", "a", "b"],
    cases=["b", "a", "c"],
    repeats=0,
    told={"mail": [Told(0, "REVIEW 1.00\n"), Told(1, "2 flagged payments (2 to review), 9.00\n")]},
    logged_s=0.1,
    stored_s=0.2,
    told_s={"mail": 0.2},
    took_s=1.0,
)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"flagged": ["a", "b"]}, "1 of 3 flags did not become an alert on the topic, first c."),
        ({"flagged": ["a", "b", "b", "c"]}, "1 flags became an alert on the topic more than once."),
        ({"cases": ["c"]}, "2 of 3 flags did not become a case on the desk, first a."),
        ({"cases": ["a", "b", "c", "c"]}, "1 flags became a case on the desk more than once."),
        ({"repeats": 2}, "The desk was given 2 flags again."),
        (
            {"told": {"mail": [Told(0, "1,002 flagged payments (2 declined)")]}},
            "mail was told of 1,002 alerts, not of 3.",
        ),
        (
            {"sent": list(map(str, range(6))), "told": {"mail": [Told(0, "REVIEW")] * 6}},
            "mail got 6 messages in 1.0 s; the rule lets 5 through.",
        ),
    ],
)
def test_faults(changes: dict[str, Any], fault: str | None) -> None:
    if "sent" in changes:
        changes |= {"flagged": changes["sent"], "cases": changes["sent"]}
    assert burst.faults(replace(KEPT, **changes)) == ([fault] if fault else [])
