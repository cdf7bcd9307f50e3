"""What each group of features is worth: the same periods without it, and with it alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from flagger.features import CATALOGUE, Feature
from train.evaluate import EvaluationPlan, History, load_period
from train.fit import fit_booster, predict
from train.metrics import CARD_PRECISION_K, card_precision, recall_at_fpr
from train.prequential import interval
from train.rows import WindowRows

__all__ = ["ablate", "feature_groups"]

_NOVELTY = ("is_new", "visits")
_TIMING = ("seconds_since_last", "days_since_first", "hour_share")
_AGAINST_HISTORY = ("ratio_to", "to_profile", "zscore")


def _group(feature: Feature) -> str:
    """Return the group of a feature; it follows from the declaration, also of new ones."""
    if feature.entity == "transaction":
        return "transaction: category codes" if feature.aggregate == "code" else "transaction"
    if feature.entity == "terminal":
        return "terminal: frauds" if "fraud" in feature.aggregate else "terminal: counts"
    if any(feature.aggregate.startswith(name) for name in _NOVELTY):
        return "customer: what is new"
    if any(feature.aggregate.startswith(name) for name in _TIMING):
        return "customer: time"
    if feature.value == "amount":
        against = any(name in feature.aggregate for name in _AGAINST_HISTORY)
        if against and (feature.window == "profile" or "profile" in feature.aggregate):
            return "customer: against profile"
        return "customer: against recent amounts" if against else "customer: amounts"
    return "customer: counts"


def feature_groups(catalogue: tuple[Feature, ...] = CATALOGUE) -> dict[str, list[int]]:
    """Return the columns of each group, groups in the catalogue's order."""
    groups: dict[str, list[int]] = {}
    for column, feature in enumerate(catalogue):
        groups.setdefault(_group(feature), []).append(column)
    return groups


def _variants() -> dict[str, list[int]]:
    """Return the columns that each variant learns from."""
    everything = list(range(len(CATALOGUE)))
    groups = feature_groups()
    found = {"all features": everything}
    for name, columns in groups.items():
        left = [column for column in everything if column not in columns]
        if left:
            found[f"without {name} ({len(columns)})"] = left
    entities = ("transaction", "customer", "terminal")
    for count, name in ((1, "transaction only"), (2, "transaction and customer")):
        found[name] = [c for c in everything if CATALOGUE[c].entity in entities[:count]]
    return found


def ablate(
    history: History,
    plan: EvaluationPlan,
    *,
    on_progress: Callable[[str, float], None] = lambda _text, _done: None,
) -> dict[str, Any]:
    """Return measures of each variant, and its difference to all features, period by period.

    Args:
        history: What `evaluate_file` has judged, or `load_history` has read.
        plan: Periods and settings of the trees; baselines are not used.
        on_progress: Called with what begins, and the share of the work that is done.

    Raises:
        DataError: A window lacks frauds or genuine transactions.
    """
    variants = _variants()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number, windows in enumerate(history.periods):
        parts = load_period(history, windows, plan.prequential.label_delay_days)
        for place, (name, columns) in enumerate(variants.items()):
            done = (number + place / len(variants)) / len(history.periods)
            on_progress(f"period {number + 1} of {len(history.periods)}: {name}", done)
            found[name].append(_measure(parts, columns, plan))
    return _table(found, variants)


def _measure(
    parts: dict[str, WindowRows], columns: list[int], plan: EvaluationPlan
) -> dict[str, float]:
    fit, validation, test = parts["fit"], parts["validation"], parts["test"]
    booster = fit_booster(
        (fit.rows[:, columns], fit.is_fraud),
        (validation.rows[:, columns], validation.is_fraud),
        plan.hyperparameters,
        plan.seed,
    )
    scores = predict(booster, np.ascontiguousarray(test.rows[:, columns]))
    return {
        "roc_auc": float(roc_auc_score(test.is_fraud, scores)),
        "average_precision": float(average_precision_score(test.is_fraud, scores)),
        "card_precision": card_precision(
            scores,
            test.is_fraud,
            test.customers,
            test.days,
            CARD_PRECISION_K,
            remove_detected=False,
        ),
        "recall_at_fpr_0.005": recall_at_fpr(scores, test.is_fraud, 0.005),
    }


def _table(
    found: dict[str, list[dict[str, float]]], variants: dict[str, list[int]]
) -> dict[str, Any]:
    whole = found["all features"]
    rows = []
    for name, periods in found.items():
        rows.append(
            {
                "variant": name,
                "columns": len(variants[name]),
                **{m: float(np.mean([p[m] for p in periods])) for m in whole[0]},
                "average_precision_change": asdict(
                    interval(
                        p["average_precision"] - w["average_precision"]
                        for p, w in zip(periods, whole, strict=True)
                    )
                ),
            }
        )
    return {"periods": len(whole), "variants": rows}
