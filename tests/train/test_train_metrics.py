"""Measures against scikit-learn and hand-made examples; thresholds against their targets."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from flagger.errors import ConfigurationError
from flagger.policy import Policy
from train.metrics import (
    calibration_table,
    card_precision,
    evaluate,
    flag_measures,
    recall_at_fpr,
)
from train.threshold import PolicyTargets, choose_policy, policy_to_json

RNG = np.random.default_rng(0)
IS_FRAUD = RNG.random(5_000) < 0.05
SCORES = np.clip(RNG.normal(0.2 + 0.3 * IS_FRAUD, 0.15), 0.001, 0.999).astype(np.float32)


def test_measures_equal_scikit_learn() -> None:
    customers = RNG.integers(0, 300, len(SCORES))
    days = np.arange(len(SCORES)) // 1_000
    got = evaluate(SCORES, IS_FRAUD, customers, days, Policy("1", 0.4, 0.6))
    flagged = np.float32(0.4) <= SCORES
    assert got["accuracy"] == pytest.approx(accuracy_score(IS_FRAUD, flagged))
    assert got["roc_auc"] == pytest.approx(roc_auc_score(IS_FRAUD, SCORES))
    assert got["average_precision"] == pytest.approx(average_precision_score(IS_FRAUD, SCORES))
    assert got["brier"] == pytest.approx(brier_score_loss(IS_FRAUD, SCORES))
    assert got["log_loss"] == pytest.approx(log_loss(IS_FRAUD, SCORES.astype(np.float64)))
    assert got["flags"]["precision"] == pytest.approx(precision_score(IS_FRAUD, flagged))
    assert got["flags"]["recall"] == pytest.approx(recall_score(IS_FRAUD, flagged))
    assert got["flags"]["f1"] == pytest.approx(f1_score(IS_FRAUD, flagged))
    assert got["declines"]["flagged"] == int((np.float32(0.6) <= SCORES).sum())
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_nothing_flagged_is_no_division_by_zero() -> None:
    got = flag_measures(np.zeros(4, bool), np.array([True, False, False, False]))
    assert (got["precision"], got["recall"], got["f1"], got["accuracy"]) == (0, 0, 0, 0.75)


def test_recall_at_false_positive_rate_by_hand() -> None:
    # Ten genuine at 0.0 ... 0.9, frauds at 0.95, 0.85 and 0.05.
    scores = np.array([*(np.arange(10) / 10), 0.95, 0.85, 0.05], dtype=np.float32)
    is_fraud = np.array([False] * 10 + [True] * 3)
    assert recall_at_fpr(scores, is_fraud, 0.0) == pytest.approx(1 / 3)
    assert recall_at_fpr(scores, is_fraud, 0.1) == pytest.approx(2 / 3)
    assert recall_at_fpr(scores, is_fraud, 0.9) == pytest.approx(1.0)


def test_calibration_table_by_hand() -> None:
    scores = np.array([0.1, 0.3, 0.8, 0.6], dtype=np.float32)
    table = calibration_table(scores, np.array([False, False, True, True]), bins=2)
    assert [part["rows"] for part in table] == [2, 2]
    assert [part["mean_score"] for part in table] == pytest.approx([0.2, 0.7])
    assert [part["fraud_share"] for part in table] == [0.0, 1.0]


def test_card_precision_by_hand() -> None:
    # (day, customer, score, fraud); k = 2
    rows = [
        (0, "a", 0.2, False),
        (0, "a", 0.9, False),  # a counts as compromised by its other transaction
        (0, "a", 0.1, True),
        (0, "b", 0.8, False),
        (0, "c", 0.7, True),  # third place: not looked at
        (1, "a", 0.9, True),  # found on day 0
        (1, "b", 0.8, False),
        (1, "c", 0.7, True),
        (2, "d", 0.5, True),  # one customer, still divided by k
    ]
    days, customers, scores, is_fraud = (np.array(column) for column in zip(*rows, strict=True))
    measured = [
        card_precision(
            scores.astype(np.float32), is_fraud, customers, days, 2, remove_detected=removed
        )
        for removed in (False, True)
    ]
    assert measured[0] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    # Without a, day 1 has b and c: one of two, again; with b and c only.
    assert measured[1] == pytest.approx((1 / 2 + 1 / 2 + 1 / 2) / 3)
    measured_one = [
        card_precision(
            scores.astype(np.float32), is_fraud, customers, days, 1, remove_detected=removed
        )
        for removed in (False, True)
    ]
    assert measured_one == pytest.approx([(1 + 1 + 1) / 3, (1 + 0 + 1) / 3])


def test_policy_keeps_budget_and_precision() -> None:
    targets = PolicyTargets(alert_budget=0.02, decline_precision=0.8)
    policy = choose_policy(SCORES, IS_FRAUD, targets)
    flagged = np.float32(policy.review_threshold) <= SCORES
    declined = np.float32(policy.decline_threshold) <= SCORES
    assert 0.019 < flagged.mean() <= 0.02
    assert declined.sum() >= 20
    assert IS_FRAUD[declined].mean() >= 0.8
    lower = np.sort(SCORES[~declined])[-1]  # one transaction more would break the promise
    assert IS_FRAUD[lower <= SCORES].mean() < 0.8
    assert Policy.from_json(policy_to_json(policy, targets)) == policy


def test_ties_are_flagged_together_or_not_at_all() -> None:
    scores = np.array([0.9] * 5 + [0.5] * 20 + [0.1] * 75, dtype=np.float32)
    policy = choose_policy(scores, scores > 0.8, PolicyTargets(alert_budget=0.1))
    assert policy.review_threshold == pytest.approx(0.9)
    assert policy.decline_threshold == 1.0  # five certain frauds are too few to know


def test_no_threshold_within_the_budget_flags_nothing() -> None:
    scores = np.full(50, 0.5, dtype=np.float32)
    policy = choose_policy(scores, np.arange(50) < 5, PolicyTargets(alert_budget=0.1))
    assert policy.decide(scores).tolist() == [0] * 50


@pytest.mark.parametrize("targets", [(0.0, 0.9), (1.0, 0.9), (0.1, 0.0), (0.1, 1.1)])
def test_impossible_targets_are_refused(targets: tuple[float, float]) -> None:
    with pytest.raises(ConfigurationError, match="alert_budget"):
        PolicyTargets(*targets)
