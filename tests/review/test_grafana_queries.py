"""Every query that the boards send to the case store gives rows on a real PostgreSQL."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from grafana.generate import boards_as_objects
from review.database import migrate, open_engine
from review.store import CaseStore, Flag

NOW_MS = 1_790_000_000_000

PANELS: list[dict[str, Any]] = [
    panel
    for board in boards_as_objects().values()
    for panel in board["panels"]
    if panel.get("datasource", {}).get("type") == "grafana-postgresql-datasource"
]


@pytest.fixture
def cases(postgres: str, flag: Callable[..., Flag]) -> Iterator[Engine]:
    """A store with three flags of two minutes, one of them confirmed as fraud."""
    name = f"grafana_{uuid.uuid4().hex[:8]}"
    admin = open_engine(f"{postgres}/postgres")
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    found = open_engine(f"{postgres}/{name}")
    migrate(found)
    flags = [flag(1), flag(2, 90_000, channel="", country="FR"), flag(3, 120_000)]
    CaseStore(found).add(flags, NOW_MS)
    with found.begin() as connection:
        connection.execute(
            text("UPDATE cases SET state = 'confirmed_fraud' WHERE transaction_id = 't3'")
        )
    yield found
    found.dispose()


def ask(engine: Engine, panel: dict[str, Any], from_ms: int, to_ms: int) -> list[Any]:
    """Ask as Grafana does, with its macros put in."""
    (target,) = panel["targets"]
    sql = target["rawSql"].replace("$__unixEpochFrom()", str(from_ms // 1000))
    sql = sql.replace("$__unixEpochTo()", str(to_ms // 1000))
    assert "$" not in sql
    with engine.connect() as connection:
        return list(connection.execute(text(re.sub(r"(?<!:):(?!:)", r"\\:", sql))))


def test_there_are_panels_of_the_case_store() -> None:
    assert len(PANELS) >= 7


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_rows(cases: Engine, panel: dict[str, Any]) -> None:
    rows = ask(cases, panel, NOW_MS - 600_000, NOW_MS + 600_000)
    assert rows
    assert all(value is not None for value in rows[0][:2])
    if panel["targets"][0]["format"] == "time_series":
        assert list(rows[0]._fields) == ["time", "metric", "value"]
        assert [row.time for row in rows] == sorted(row.time for row in rows)
        assert sum(row.value for row in rows) == 3
        assert ask(cases, panel, NOW_MS + 1_000_000, NOW_MS + 2_000_000) == []


def test_numbers_are_right(cases: Engine) -> None:
    found = {
        panel["title"]: ask(cases, panel, NOW_MS - 600_000, NOW_MS + 600_000) for panel in PANELS
    }
    assert found["Open cases"][0].value == 2
    assert found["Amount at risk"][0].value == pytest.approx(2 * 0.5 * 100.0)
    assert found["Precision of what was decided"][0].value == 1
    assert found["Precision from labels"][0].value == 1
    assert tuple(found["Precision by version and decision"][0]) == (
        *("fraud_fil", "3", "review"),
        *(1, 1, 1),
    )
    assert [row.Transaction for row in found["Latest flags"]] == ["t1", "t2", "t3"]
