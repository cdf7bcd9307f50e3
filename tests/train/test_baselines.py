"""Rules against trying every set of thresholds; baselines find what can be found."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from flagger.features import FEATURE_NAMES
from train.baselines import BASELINES, RULE_FEATURES, RuleSet, fit_rules

RNG = np.random.default_rng(5)
COLUMNS = [FEATURE_NAMES.index(name) for name in RULE_FEATURES]


def payments(n: int = 4_000) -> tuple[np.ndarray, np.ndarray]:
    """Return rows with some missing values; frauds are large or come fast."""
    rows = RNG.normal(size=(n, len(FEATURE_NAMES))).astype(np.float32)
    rows[:, COLUMNS[0]] = RNG.gamma(2.0, 30.0, n)
    rows[:, COLUMNS[1]] = RNG.poisson(0.3, n)
    rows[:, COLUMNS[2]] = RNG.poisson(2.0, n)
    rows[:, COLUMNS[3]] = RNG.gamma(2.0, 60.0, n)
    is_fraud = RNG.random(n) < 0.05
    kind = RNG.random(n) < 0.5
    rows[is_fraud & kind, COLUMNS[0]] *= 3
    rows[is_fraud & ~kind, COLUMNS[1]] += 3
    rows[RNG.random(n) < 0.1, COLUMNS[3]] = np.nan
    return rows, is_fraud


def test_no_combination_of_the_thresholds_beats_the_kept_rule_sets() -> None:
    rows, is_fraud = payments()
    sets = fit_rules(rows, is_fraud)
    counts = [int(rule_set.flags(rows).sum()) for rule_set in sets]
    hits = [int((rule_set.flags(rows) & is_fraud).sum()) for rule_set in sets]
    assert counts == sorted(counts)
    assert hits == sorted(hits)
    choices = [sorted({float(s.thresholds[i]) for s in sets} | {np.inf}) for i in range(4)]
    tried = 0
    for thresholds in product(*choices):
        flags = RuleSet(np.array(thresholds, dtype=np.float32)).flags(rows)
        caught = int((flags & is_fraud).sum())
        better = [h for c, h in zip(counts, hits, strict=True) if c >= flags.sum()]
        tried += bool(better)
        assert not better or caught <= better[0]
    assert tried > 10


def test_missing_values_flag_nothing() -> None:
    rows = np.full((3, len(FEATURE_NAMES)), np.nan, dtype=np.float32)
    assert not RuleSet(np.zeros(4, dtype=np.float32)).flags(rows).any()


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_rank_later_payments_and_are_repeatable(name: str) -> None:
    rows, is_fraud = payments()
    later, later_fraud = payments(2_000)
    scores = BASELINES[name](rows, is_fraud, 1)(later)
    assert scores.dtype == np.float32
    assert roc_auc_score(later_fraud, scores) > 0.8
    np.testing.assert_array_equal(scores, BASELINES[name](rows, is_fraud, 1)(later))
    if name != "rules":  # probabilities: the mean is the share of fraud
        assert scores.mean() == pytest.approx(later_fraud.mean(), rel=0.3)
