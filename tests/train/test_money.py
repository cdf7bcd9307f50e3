"""Money saved by hand, and the cheapest thresholds against trying all of them."""

from __future__ import annotations

import numpy as np
import pytest

from flagger.errors import ConfigurationError
from flagger.features import FEATURE_NAMES
from flagger.policy import DECLINE, REVIEW, Policy
from train.metrics import known_compromised, recall_at_budget, reviews_for_recall
from train.money import CostMatrix, cheapest_thresholds, money_saved, policy_of_costs
from train.rows import WindowRows
from train.threshold import PolicyTargets, policy_for, trade_off

RNG = np.random.default_rng(3)


def window(n: int = 600) -> tuple[WindowRows, np.ndarray]:
    """Return a window of three days with ties among the scores."""
    is_fraud = RNG.random(n) < 0.1
    rows = np.zeros((n, len(FEATURE_NAMES)), dtype=np.float32)
    rows[:, FEATURE_NAMES.index("amount")] = RNG.gamma(2.0, 30.0, n)
    scores = np.clip(RNG.normal(0.2 + 0.3 * is_fraud, 0.15), 0.01, 0.99).astype(np.float32)
    days = np.arange(n, dtype=np.int64) * 3 // n
    part = WindowRows(rows, is_fraud, np.arange(n), days, np.arange(n, dtype=np.int64))
    return part, np.round(scores, 2)


def test_money_saved_by_hand() -> None:
    decisions = np.array([0, 1, 2, 1, 2, 0], dtype=np.uint8)
    is_fraud = np.array([True, True, True, False, False, False])
    amounts = np.array([100, 50, 30, 70, 80, 90], dtype=np.float32)
    # caught 50 + 30, two reviews of 4, one genuine declined for 20
    assert money_saved(decisions, is_fraud, amounts, CostMatrix(4.0, 20.0)) == pytest.approx(52.0)
    nothing = np.zeros(6, dtype=np.uint8)
    assert money_saved(nothing, is_fraud, amounts, CostMatrix()) == 0.0


@pytest.mark.parametrize("costs", [CostMatrix(5, 30), CostMatrix(40, 25), CostMatrix(0, 500)])
def test_cheapest_thresholds_beat_all_others(costs: CostMatrix) -> None:
    part, scores = window()

    def saved(review: float, decline: float) -> float:
        codes = (scores >= review).astype(np.uint8) + (scores >= decline)
        return money_saved(codes.astype(np.uint8), part.is_fraud, part.amounts, costs)

    review, decline = cheapest_thresholds(scores, part.is_fraud, part.amounts, costs)
    assert review <= decline
    grid = [*np.unique(scores).tolist(), np.inf]
    best = max(saved(low, high) for low in grid for high in grid if low <= high)
    assert saved(review, decline) == pytest.approx(best)
    policy = policy_of_costs(scores, part.is_fraud, part.amounts, costs, "7")
    assert policy.version == "7"


def test_reviews_too_expensive_are_not_made() -> None:
    part, scores = window()
    costs = CostMatrix(review_cost=1e6, friction_cost=1e9)
    decisions = policy_of_costs(scores, part.is_fraud, part.amounts, costs, "1").decide(scores)
    assert REVIEW not in decisions
    assert part.is_fraud[decisions == DECLINE].all()
    genuine = np.zeros(len(scores), dtype=np.bool_)
    assert cheapest_thresholds(scores, genuine, part.amounts, costs) == (np.inf, np.inf)


def test_reviews_a_day_are_kept() -> None:
    part, scores = window()
    policy = policy_for(scores, part, PolicyTargets(reviews_per_day=12))
    flagged = scores >= np.float32(policy.review_threshold)
    assert 0 < flagged.sum() / 3 <= 12
    lower = np.max(scores[~flagged])
    assert (scores >= lower).sum() / 3 > 12
    with pytest.raises(ConfigurationError, match="not from both"):
        PolicyTargets(reviews_per_day=5, costs=CostMatrix())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_costs_and_aims_that_are_no_numbers_are_refused(value: float) -> None:
    """JSON has no NaN: they would fail, or end in a policy, after the training only."""
    with pytest.raises(ConfigurationError, match="reviews_per_day"):
        PolicyTargets(reviews_per_day=value)
    for costs in ({"review_cost": value}, {"friction_cost": value}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(costs))} is {value}; a cost"):
            CostMatrix(**costs)


def test_trade_off_repeats_what_the_policy_does() -> None:
    part, scores = window()
    policy = Policy("1", 0.5, 0.7)
    points = trade_off(scores, part, CostMatrix(), policy)
    flags = [point["flags_per_day"] for point in points]
    assert flags == sorted(flags)
    for point in points:
        flagged = scores >= np.float32(point["review_threshold"])
        assert point["recall"] == pytest.approx(
            (flagged & part.is_fraud).sum() / part.is_fraud.sum()
        )
        assert point["flags_per_day"] == pytest.approx(flagged.sum() / 3)


def test_recall_at_budget_and_reviews_for_recall_by_hand() -> None:
    scores = np.array([0.9, 0.8, 0.8, 0.8, 0.5, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=np.float32)
    is_fraud = np.array([1, 1, 0, 0, 1, 0, 0, 0, 0, 1], dtype=bool)
    assert recall_at_budget(scores, is_fraud, 0.1) == pytest.approx(1 / 4)
    assert recall_at_budget(scores, is_fraud, 0.2) == pytest.approx((1 + 1 / 3) / 4)
    assert recall_at_budget(scores, is_fraud, 1.0) == pytest.approx(1.0)
    assert reviews_for_recall(scores, is_fraud, 0.25) == 1
    assert reviews_for_recall(scores, is_fraud, 0.5) == 4
    assert reviews_for_recall(scores, is_fraud, 0.75) == 5
    assert reviews_for_recall(scores, is_fraud, 1.0) == 10
    assert reviews_for_recall(scores, is_fraud, 0.0) == 0


def test_known_compromised_by_hand() -> None:
    customers = np.array(["a", "a", "b", "c"])
    days = np.array([17, 18, 18, 18])
    # Fraud of day 10 is known after 7 days: on day 18, not on day 17.
    past = (np.array(["a", "a", "b"]), np.array([12, 10, 11]))
    assert known_compromised(customers, days, past, 7).tolist() == [False, True, False, False]
