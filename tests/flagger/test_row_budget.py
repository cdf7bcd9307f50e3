"""How many rows a second are let through to what no decision needs."""

from __future__ import annotations

from flagger.row_budget import RowBudget


def test_at_most_a_seconds_worth_is_let_through() -> None:
    now_s = [0.0]
    budget = RowBudget(100, lambda: now_s[0])
    assert budget.take(5) == 0
    now_s[0] = 0.5
    assert [budget.take(30), budget.take(30), budget.take(30)] == [30, 20, 0]
    now_s[0] = 1_000
    assert budget.take(1_000) == 100
