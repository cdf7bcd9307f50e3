"""Which frauds of the Handbook's generator nobody can foresee, by hand and in a period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from train.ceiling import ceiling, unforeseeable
from train.evaluate import TREES, EvaluationPlan, evaluate_file
from train.fit import Hyperparameters
from train.prequential import PrequentialPlan
from train.sources import SCHEMA

START = datetime(2026, 1, 1, 6, tzinfo=UTC)
EPISODE = [(day, "t1", 50.0, True) for day in (2.0, 9.2, 9.3, 12.0)]


def table(rows: list[tuple[float, str, float, bool]]) -> pa.Table:
    """Return transactions of (days after START, terminal, amount, fraud), ordered by time."""
    columns = {
        "transaction_id": [f"x{number}" for number in range(len(rows))],
        "event_time": [START + timedelta(days=day) for day, *_ in rows],
        "customer_id": ["c"] * len(rows),
        "terminal_id": [terminal for _, terminal, *_ in rows],
        "amount": [amount for *_, amount, _ in rows],
        "is_fraud": [fraud for *_, fraud in rows],
    }
    for name in SCHEMA.names:
        columns.setdefault(name, [None] * len(rows))
    return pa.table(columns).select(SCHEMA.names).cast(SCHEMA, safe=False)


def test_frauds_of_a_compromised_terminal_hide_until_the_first_is_known() -> None:
    """The first is at 6 h of 3 January; its half day was over for 7 days on the 10th at 12 h."""
    found = unforeseeable(table(EPISODE), label_delay_days=7)
    assert found.tolist() == [True, True, False, False]
    earlier = unforeseeable(table(EPISODE), label_delay_days=0)
    assert earlier.tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((2.5, "t1", 221.0, True), [True, False, True]),  # told by its amount; the run goes on
        ((2.5, "t1", 50.0, False), [False, False, False]),  # one fraud, then another: no run
        ((2.5, "t2", 50.0, True), [True, False, True]),  # another terminal's only fraud
    ],
)
def test_what_is_a_run(row: tuple[float, str, float, bool], expected: list[bool]) -> None:
    found = unforeseeable(table([EPISODE[0], row, EPISODE[1]]), label_delay_days=7)
    assert found.tolist() == expected


def test_a_run_does_not_go_on_at_the_next_terminal() -> None:
    rows = [(1.0, "t1", 50.0, True), (2.0, "t2", 50.0, True)]
    assert not unforeseeable(table(rows), label_delay_days=7).any()


def test_the_best_area_of_a_period(tmp_path: Path) -> None:
    """Frauds at compromised terminals only: a perfect model loses what is not known yet."""
    random = np.random.default_rng(3)
    rows = [
        (float(day), f"t{terminal}", float(random.uniform(1, 100)), terminal == day // 10)
        for day in np.sort(random.uniform(0, 60, 6_000))
        for terminal in [int(random.integers(0, 40))]
    ]
    pq.write_table(table(rows), tmp_path / "payments.parquet")
    plan = EvaluationPlan(
        prequential=PrequentialPlan(periods=1, train_days=30),
        baselines=False,
        hyperparameters=Hyperparameters(max_trees=20, max_depth=3),
    )
    evaluation = evaluate_file(tmp_path / "payments.parquet", plan)
    (row,) = ceiling(plan, evaluation)
    share = row["unforeseeable"] / row["frauds"]
    assert 0 < row["unforeseeable"] <= row["frauds"]
    assert row["perfect_roc_auc"] == pytest.approx(1 - share / 2)
    assert row["roc_auc"] == pytest.approx(evaluation.measures["summary"][TREES]["roc_auc"]["mean"])
    parts = [(row["on_unforeseeable"], share), (row["on_others"], 1 - share)]
    whole = sum(area * weight for area, weight in parts if area is not None)
    assert row["roc_auc"] == pytest.approx(whole)  # an area is a mean over the frauds
