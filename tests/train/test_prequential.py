"""Where the periods lie, which days are mature, and the interval over periods."""

from __future__ import annotations

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from flagger.errors import ConfigurationError
from train.evaluate_cli import _spread
from train.period_measures import summarise
from train.prequential import PrequentialPlan, choose_periods, interval

FIRST, LAST = date(2026, 1, 1), date(2026, 4, 10)


def test_periods_follow_each_other_and_keep_the_label_delay() -> None:
    plan = PrequentialPlan(periods=3, train_days=30, test_days=7, label_delay_days=7)
    periods = choose_periods(FIRST, LAST, plan)
    assert [p.test_to for p in periods] == [date(2026, 3, 20), date(2026, 3, 27), date(2026, 4, 3)]
    for period in periods:
        assert (period.test_to - period.test_from).days == 6
        assert period.gap_days == 7
        assert period.train_days == 30


def test_days_without_mature_labels_are_not_judged() -> None:
    plan = PrequentialPlan(periods=1, label_delay_days=7)
    assert plan.last_mature_day(LAST) == date(2026, 4, 3)
    with pytest.raises(ConfigurationError, match="mature up to 2026-04-03"):
        choose_periods(FIRST, LAST, PrequentialPlan(periods=1, test_to=date(2026, 4, 4)))
    later = PrequentialPlan(periods=1, test_to=LAST, labels_as_of=date(2026, 4, 17))
    assert choose_periods(FIRST, LAST, later)[0].test_to == LAST


def test_first_periods_learn_from_fewer_days_but_not_from_none() -> None:
    plan = PrequentialPlan(periods=4, train_days=60)
    periods = choose_periods(FIRST, LAST, plan)
    assert periods[0].train_from == FIRST
    assert periods[0].train_days < 60
    with pytest.raises(ConfigurationError, match="days to learn from"):
        choose_periods(FIRST, LAST, PrequentialPlan(periods=13))
    with pytest.raises(ConfigurationError, match="at least one period"):
        PrequentialPlan(periods=0)


def test_interval_is_that_of_scipy() -> None:
    values = [0.71, 0.74, 0.69, 0.78]
    found = interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert interval([0.5]).low is None


def test_an_interval_keeps_to_the_range_of_the_measure() -> None:
    """Two periods leave one degree of freedom: t is 12.7."""
    periods = [
        {"roc_auc": 0.98, "brier": 0.001, "money_saved_share": 0.1},
        {"roc_auc": 0.90, "brier": 0.003, "money_saved_share": 0.3},
    ]
    found = summarise(periods)
    whole = interval([0.98, 0.90])
    assert whole.high is not None
    assert whole.high > 1
    assert (found["roc_auc"]["low"], found["roc_auc"]["high"]) == (whole.low, 1.0)
    assert found["brier"]["low"] == 0.0
    assert found["money_saved_share"]["low"] < 0  # reviews can cost more than they save
    assert found["money_saved_share"]["high"] == 1.0


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"mean": 0.5, "low": 0.4, "high": 0.6}, "0.50 ± 0.10"),
        ({"mean": 0.94, "low": 0.43, "high": 1.0}, "0.94 (0.43 to 1.00)"),
        ({"mean": 0.94, "low": None, "high": None}, "0.94"),
    ],
)
def test_a_cut_interval_is_shown_by_its_ends(entry: dict[str, Any], words: str) -> None:
    assert _spread(entry, 2) == words


def test_the_tutorials_file_is_long_enough_for_its_evaluation() -> None:
    """Its `flagger evaluate` has no options: the defaults must fit the days that it simulates."""
    page = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (days,) = re.findall(r"flagger simulate .*--days (\d+)", page)
    assert "flagger evaluate --data payments.parquet --out runs/evaluation\n" in page
    plan = PrequentialPlan()
    (least,) = re.findall(r"It needs (\d+) days", page)

    def periods(count: int) -> int:
        last = FIRST + timedelta(days=count - 1)
        return len(choose_periods(FIRST + timedelta(days=plan.label_delay_days), last, plan))

    assert periods(int(days)) == periods(int(least)) == plan.periods
    with pytest.raises(ConfigurationError, match="fewer periods"):
        periods(int(least) - 1)
