"""Lists and rules tried on history: counted by hand, and by the command."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from flagger.errors import ConfigurationError
from flagger.features import FEATURE_NAMES
from flagger.overrules import Overruler
from flagger.rulebook import load_rulebook
from train.rules_backtest import approve_all, backtest
from train.rules_cli import _contract_of, rules
from train.sources import SCHEMA

RULES = """
version = "1"
[[list]]
name = "staff"
action = "allow"
field = "customer_id"
values = ["staff"]
[[rule]]
name = "large"
decision = "decline"
when = [{ feature = "amount", at_least = 100 }]
[[rule]]
name = "second within the hour"
decision = "review"
when = [{ feature = "customer_count_1h", at_least = 1 }]
"""
START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def history(*rows: tuple[int, str, float, bool | None]) -> pa.Table:
    """Return transactions: minute, customer, amount, outcome."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for i, (minute, customer, amount, is_fraud) in enumerate(rows):
        values = {
            "transaction_id": f"t{i}",
            "event_time": START + timedelta(minutes=minute),
            "customer_id": customer,
            "terminal_id": "m",
            "amount": amount,
            "is_fraud": is_fraud,
        }
        for name, column in columns.items():
            column.append(values.get(name))
    return pa.table(columns, schema=SCHEMA)


def model(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Review amounts from 50 on."""
    return (rows[:, FEATURE_NAMES.index("amount")] >= 50).astype(np.uint8)


TABLE = history(
    (0, "a", 10, False),
    (10, "a", 10, True),  # the second within the hour: approve -> review
    (20, "a", 60, None),  # the model reviews it anyway
    (30, "b", 150, True),  # review -> decline
    (40, "staff", 500, False),  # review -> approve
    (50, "staff", 5, False),  # the second of this customer, and stays approved
    (900, "a", 200, False),  # review -> decline
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    return path


def test_counted_by_hand(file: Path) -> None:
    found = backtest(TABLE, Overruler(load_rulebook(file)), _contract_of(TABLE), model)
    assert found.before.decisions.tolist() == [3, 4, 0]
    assert found.after.decisions.tolist() == [3, 2, 2]
    assert found.moves.tolist() == [[2, 1, 0], [1, 1, 2], [0, 0, 0]]
    assert found.changed == 4
    assert (found.before.precision, found.before.recall) == (1 / 3, 1 / 2)
    assert (found.after.precision, found.after.recall) == (2 / 3, 1.0)
    assert found.after.to_dict()["fraud_amount_caught"] == 160.0
    entries = {e.name: (e.holds, e.changes, e.frauds, e.genuine) for e in found.entries}
    assert entries == {
        "staff": (2, 1, 0, 2),
        "large": (2, 2, 1, 1),
        "second within the hour": (2, 1, 1, 0),
    }


def test_days_before_only_feed_the_features(file: Path) -> None:
    overruler, contract = Overruler(load_rulebook(file)), _contract_of(TABLE)
    from_ms = int((START + timedelta(minutes=15)).timestamp() * 1000)
    found = backtest(TABLE, overruler, contract, approve_all, from_ms=from_ms)
    assert found.before.decisions.tolist() == [5, 0, 0]
    held = {entry.name: entry.holds for entry in found.entries}
    assert held["second within the hour"] == 1  # t2: its first two payments were fed


def test_the_commands(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "history.parquet", tmp_path / "out.json"
    pq.write_table(TABLE, data)
    arguments = ["backtest", "--data", str(data), "--without-model", "--out", str(out)]
    monkeypatch.setenv("FLAGGER_RULEBOOK", str(file))
    result = CliRunner().invoke(rules, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    told = json.loads(out.read_text())
    assert told["version"].startswith("1-")
    assert told["after"]["decisions"] == {"approve": 3, "review": 2, "decline": 2}
    assert "staff" in CliRunner().invoke(rules, ["check"], catch_exceptions=False).output
    file.write_text(RULES.replace("decline", "approve"))
    with pytest.raises(ConfigurationError, match=r"rule 1 \(large\), decision"):
        CliRunner().invoke(rules, ["check", str(file)], catch_exceptions=False)
    keys = CliRunner().invoke(rules, ["key"], input="c1\n\nc2\n").output.split()
    assert [len(key) for key in keys] == [16, 16]
