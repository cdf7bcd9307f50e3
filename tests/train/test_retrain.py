"""`flagger retrain`: topics to history, the live recipe, both judged, nothing published."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from export.publish import export_model
from flagger.features.hashing import key_of
from flagger.models import list_versions, live_version, load_version, version_folder
from flagger.pointer import POINTER_FILE
from train.history import history_of
from train.retrain import COMPARISON_FILE, MEASURES, plan_like
from train.retrain_cli import retrain_command
from train.sources import SCHEMA

START_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * 1000
DAY_MS = 86_400_000


def payment(number: int, day: int, **changes: Any) -> bytes:
    fields = {
        "transaction_id": f"t{number}",
        "event_time": START_MS + day * DAY_MS + number,
        "customer_id": "c",
        "terminal_id": "m",
        "amount": 5 + number,
        "channel": "pos",
    }
    return msgspec.json.encode(fields | changes)


def test_outcomes_are_what_labels_say_and_no_more() -> None:
    pieces = [
        [payment(3, 1), payment(1, 0), payment(2, 0), b"{"],
        [payment(1, 0, amount=9), payment(4, 1), payment(5, 10), payment(6, 20)],
        [payment(7, 20, event_time="2026-01-21T00:00:01+01:00")],
    ]
    labels = {key_of(f"t{i}"): i != 2 for i in (1, 2, 3, 6)}  # t2: an analyst said no
    history = history_of(pieces, labels, maturity_days=5)
    assert history.table.schema == SCHEMA
    rows = history.table.select(["transaction_id", "is_fraud", "amount"]).to_pylist()
    assert [(row["transaction_id"], row["is_fraud"]) for row in rows] == [
        ("t1", True),
        ("t2", False),
        ("t3", True),
        ("t4", False),  # its day is old and has labels
        ("t5", None),  # no label has reached its day
        ("t7", None),  # too young
        ("t6", True),  # too young, but known
    ]
    assert rows[0]["amount"] == 6.0  # the first message counts
    assert history.mature_to == date(2026, 1, 16)
    assert (history.repeats, history.unreadable, history.days_without_labels) == (1, 1, 1)


def test_an_empty_topic_is_an_empty_history() -> None:
    assert history_of([], {}, 5).table.num_rows == 0


@pytest.fixture(scope="module")
def repository(small_training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retrain") / "repository"
    export_model(small_training, folder, n_parity_rows=100)
    return folder


def test_the_recipe_is_the_live_versions(repository: Path) -> None:
    live = load_version(repository, live_version(repository))
    plan = plan_like(repository, live, test_to=date(2026, 2, 1), seed=7, search_trials=0)
    assert plan.hyperparameters.max_trees == 30
    assert plan.targets.alert_budget == 0.01
    assert (plan.seed, plan.test_to, plan.label_delay_days) == (7, date(2026, 2, 1), 7)


def test_a_candidate_is_compared_and_nothing_is_published(
    repository: Path, small_training: Path, tmp_path: Path
) -> None:
    before = (repository / POINTER_FILE).read_bytes(), list_versions(repository)
    data = small_training.parent / "transactions.parquet"
    result = CliRunner().invoke(
        retrain_command,
        ["--data", str(data), "--repository", str(repository), "--out", str(tmp_path / "out")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    for words in (*MEASURES, "nothing is published", "flagger models shadow VERSION"):
        assert words in result.output
    assert ((repository / POINTER_FILE).read_bytes(), list_versions(repository)) == before
    found = json.loads((tmp_path / "out" / COMPARISON_FILE).read_text())
    assert found["live"]["version"] == "1"
    assert not found["live_has_seen_the_test_window"]
    # The live version was judged on this very window when it was trained.
    own = json.loads((version_folder(repository, "1") / "metrics.json").read_text())["test"]
    assert found["live"]["roc_auc"] == pytest.approx(own["roc_auc"], abs=1e-6)
    assert found["live"]["flags"] == pytest.approx(own["flags"], abs=1e-6)
    assert found["candidate"]["transactions"] == own["transactions"]
    assert (tmp_path / "out" / "model.json").exists()
    assert data.exists()
