"""What a model has to beat: rules on amount and velocity, logistic regression, random forest.

All learn from the same rows as the trees. The two statistical ones see all frauds and a sample of
the genuine transactions, weighted up again, so that their scores stay probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from flagger.features import FEATURE_NAMES

__all__ = ["BASELINES", "RULE_FEATURES", "RuleSet", "Scorer", "fit_rules"]

Rows = npt.NDArray[np.float32]
Outcomes = npt.NDArray[np.bool_]
Scorer = Callable[[Rows], npt.NDArray[np.float32]]
"""From feature rows [n, F] to scores float32 [n]."""

RULE_FEATURES = (
    "amount",
    "customer_count_1h",
    "customer_count_24h",
    "customer_amount_sum_24h",
)
"""A transaction is flagged if one of these reaches its threshold."""
_RULE_COLUMNS = [FEATURE_NAMES.index(name) for name in RULE_FEATURES]
_RULE_QUANTILES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
_BUDGETS = np.geomspace(0.0002, 0.5, 60)
"""Shares of transactions to flag for which the best rule set is looked for."""
_MOST_GENUINE = 100_000


@dataclass(frozen=True)
class RuleSet:
    """One threshold for each of `RULE_FEATURES`, inclusive; infinity: the rule is off.

    Attributes:
        thresholds: float32 [4].
    """

    thresholds: npt.NDArray[np.float32]

    def flags(self, rows: Rows) -> Outcomes:
        """Return which rows [n, F] are flagged, bool [n]; a missing value flags nothing."""
        flagged: Outcomes = np.any(rows[:, _RULE_COLUMNS] >= self.thresholds, axis=1)
        return flagged


def _counts_below(levels: npt.NDArray[np.intp], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return for each combination of levels how many rows exceed none of them."""
    counts = np.zeros(shape, dtype=np.int64)
    np.add.at(counts, tuple(levels.T), 1)
    for axis in range(len(shape)):
        counts = np.cumsum(counts, axis=axis)
    return counts


def fit_rules(rows: Rows, is_fraud: Outcomes) -> tuple[RuleSet, ...]:
    """Return the best rule sets for rising numbers of flags, strictest first.

    All combinations of thresholds on a grid of quantiles are tried. For each budget the set that
    catches most of these frauds is kept.

    Args:
        rows: Feature rows to learn from, float32 [n, F].
        is_fraud: Their outcomes, bool [n].
    """
    values = np.nan_to_num(rows[:, _RULE_COLUMNS], nan=-np.inf)
    grids = [
        np.unique(np.quantile(column[~is_fraud], _RULE_QUANTILES, method="higher"))
        for column in values.T
    ]
    levels = np.stack(
        [np.searchsorted(g, v, side="right") for g, v in zip(grids, values.T, strict=True)], axis=1
    )
    shape = tuple(len(grid) + 1 for grid in grids)
    unflagged = _counts_below(levels, shape)
    missed = _counts_below(levels[is_fraud], shape)
    flagged = len(rows) - unflagged.ravel()
    hits = int(is_fraud.sum()) - missed.ravel()
    found: list[int] = []
    for budget in _BUDGETS:
        within = np.flatnonzero((flagged <= budget * len(rows)) & (flagged > 0))
        if len(within):
            best = within[np.lexsort((flagged[within], -hits[within]))[0]]
            if not found or hits[best] > hits[found[-1]]:
                found.append(int(best))
    ends = [np.append(grid, np.inf).astype(np.float32) for grid in grids]
    return tuple(
        RuleSet(np.array([end[i] for end, i in zip(ends, index, strict=True)], dtype=np.float32))
        for index in zip(*np.unravel_index(found, shape), strict=True)
    )


def _rules(rows: Rows, is_fraud: Outcomes, _seed: int) -> Scorer:
    """The score is higher the stricter the first rule set that flags; it is no probability."""
    sets = fit_rules(rows, is_fraud)

    def score(asked: Rows) -> npt.NDArray[np.float32]:
        scores = np.zeros(len(asked), dtype=np.float32)
        for place, rule_set in enumerate(reversed(sets), start=1):
            scores[rule_set.flags(asked)] = place / (len(sets) + 1)
        return scores

    return score


def _sample(
    rows: Rows, is_fraud: Outcomes, seed: int
) -> tuple[Rows, Outcomes, npt.NDArray[np.float64]]:
    """Return all frauds and at most `_MOST_GENUINE` others, with weights that make up for it."""
    genuine = np.flatnonzero(~is_fraud)
    few = min(len(genuine), _MOST_GENUINE)
    rng = np.random.default_rng(seed)
    chosen = np.sort(
        np.concatenate([np.flatnonzero(is_fraud), rng.choice(genuine, few, replace=False)])
    )
    weights = np.where(is_fraud[chosen], 1.0, len(genuine) / max(few, 1))
    return rows[chosen], is_fraud[chosen], weights


def _log(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Amounts and counts have long tails: sign(x) log(1 + |x|)."""
    logs: npt.NDArray[np.float64] = np.sign(values) * np.log1p(np.abs(values))
    return logs


def _logistic(rows: Rows, is_fraud: Outcomes, seed: int) -> Scorer:
    rows, is_fraud, weights = _sample(rows, is_fraud, seed)
    model = make_pipeline(
        FunctionTransformer(_log),
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(max_iter=300),
    )
    model.fit(rows.astype(np.float64), is_fraud, logisticregression__sample_weight=weights)
    return lambda asked: model.predict_proba(asked.astype(np.float64))[:, 1].astype(np.float32)


def _forest(rows: Rows, is_fraud: Outcomes, seed: int) -> Scorer:
    rows, is_fraud, weights = _sample(rows, is_fraud, seed)
    model = RandomForestClassifier(100, min_samples_leaf=5, n_jobs=2, random_state=seed)
    model.fit(rows, is_fraud, sample_weight=weights)
    return lambda asked: model.predict_proba(asked)[:, 1].astype(np.float32)


BASELINES: dict[str, Callable[[Rows, Outcomes, int], Scorer]] = {
    "rules": _rules,
    "logistic regression": _logistic,
    "random forest": _forest,
}
"""By name: learn from rows, outcomes and a seed; return a scorer."""
