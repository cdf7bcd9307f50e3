"""The burst benchmark: what is lost or comes too often fails it, on the real stack."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
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
Run = Callable[..., "tuple[int, dict[str, float], list[str], str]"]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    size = SimulationConfig(customers=200, terminals=100, days=10, start=date(2026, 1, 1), seed=8)
    return pa.Table.from_batches(simulate(size))


@pytest.fixture
def run(
    stack: LocalStack,
    servers: Settings,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Run the command with a small burst; return status, figures, reasons and output."""
    monkeypatch.setattr(burst, "WARM_UP_FLAGS", 50)
    monkeypatch.setattr(burst, "DIGEST_EVERY_S", 1.0)
    monkeypatch.setattr(bench_cli, "_table", lambda *_: table)
    monkeypatch.setenv("FLAGGER_MODEL_REPOSITORY", str(stack.model_repository))

    def command(scenario: str, before: Callable[[], None] = lambda: None) -> object:
        def on_servers(**arguments: object) -> object:
            tell = arguments.pop("on_step")

            def on_step(step: str) -> None:
                if step.startswith("run"):
                    before()
                tell(step)  # type: ignore[operator]

            return burst.bench_alerts_burst(**arguments, on_step=on_step, servers=servers)  # type: ignore[arg-type]

        monkeypatch.setattr(burst, "SCENARIO", scenario)
        monkeypatch.setattr(bench_cli, "bench_alerts_burst", on_servers)
        options = ["--rate", "0", "--burst", str(FLAGS), "--repeats", "1", "--out", str(tmp_path)]
        ran = CliRunner().invoke(bench_cli.bench, ["alerts", *options])
        assert not ran.exception or isinstance(ran.exception, SystemExit), ran.exception
        written = json.loads((tmp_path / f"{scenario}.json").read_text())
        figures = {name: figure["median"] for name, figure in written["figures"].items()}
        return ran.exit_code, figures, written["settings"]["reasons"], ran.output

    return command  # type: ignore[return-value]


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_all_flags_become_cases_and_few_messages(run: Run) -> None:
    status, figures, reasons, output = run("burst-kept")
    assert (status, reasons) == (0, []), output
    assert figures["flags"] == figures["cases on the desk"] == FLAGS
    assert figures["flags lost from the desk"] == figures["flags given to the desk again"] == 0
    for sink in ("webhook", "mail"):
        assert figures[f"alerts told to {sink}"] == FLAGS
        assert 0 < figures[f"messages to {sink}"] <= figures["messages that the rule lets through"]


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_a_lost_case_and_too_many_messages_fail_the_command(
    run: Run, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database drops one case by itself, and the rule's limit is another than was promised."""
    monkeypatch.setattr(burst, "ARRIVE_S", 8.0)
    monkeypatch.setattr(burst, "most_messages", lambda _: 1.0)

    victim = table["transaction_id"][100].as_py()

    def lose_one() -> None:
        with closing(sqlite3.connect(tmp_path / "alerts-burst" / "cases.db")) as database:
            database.execute(
                "CREATE TRIGGER lose AFTER INSERT ON cases "
                f"BEGIN DELETE FROM cases WHERE transaction_id = '{victim}'; END"
            )
            database.commit()

    status, figures, reasons, output = run("burst-lost", lose_one)
    assert status == 1
    assert figures["flags lost from the desk"] == 1
    lost, *too_many = reasons
    assert lost == f"run 1: 1 of 400 flags did not become a case on the desk, first {victim}."
    assert too_many
    assert all("the rule lets 1 through" in reason for reason in too_many), too_many
    assert all(f"FAIL: {reason}" in output for reason in reasons)


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
