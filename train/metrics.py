"""How good the scores are: measures of ranking, of decisions and of calibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    roc_curve,
)

from flagger.policy import Policy

__all__ = [
    "calibration_error",
    "calibration_table",
    "card_precision",
    "evaluate",
    "flag_measures",
    "known_compromised",
    "recall_at_budget",
    "recall_at_fpr",
    "reviews_for_recall",
]

Scores = npt.NDArray[np.float32]
Outcomes = npt.NDArray[np.bool_]

_FALSE_POSITIVE_RATES = (0.001, 0.005, 0.01)
_CALIBRATION_BINS = 20
CARD_PRECISION_K = 100
"""Customers that the analysts can look at in a day, as in the Fraud Detection Handbook."""


def flag_measures(flagged: Outcomes, is_fraud: Outcomes) -> dict[str, float | int]:
    """Return what flagging these transactions would do; precision is 0 where nothing is flagged."""
    hits = int((flagged & is_fraud).sum())
    flags, frauds = int(flagged.sum()), int(is_fraud.sum())
    return {
        "flagged": flags,
        "flagged_share": flags / max(len(flagged), 1),
        "precision": hits / max(flags, 1),
        "recall": hits / max(frauds, 1),
        "f1": 2 * hits / max(flags + frauds, 1),
        "accuracy": float((flagged == is_fraud).mean()),
    }


def recall_at_fpr(scores: Scores, is_fraud: Outcomes, rate: float) -> float:
    """Return the best recall among thresholds that flag at most `rate` of the genuine ones."""
    false_positive_rates, recalls, _ = roc_curve(is_fraud, scores, drop_intermediate=False)
    return float(recalls[false_positive_rates <= rate].max())


def recall_at_budget(scores: Scores, is_fraud: Outcomes, budget: float) -> float:
    """Return the recall of the highest scores, at most a share `budget` of all transactions.

    Of equal scores at the limit as many count as fit, with the frauds that fall to them on average.
    """
    most = budget * len(scores)
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.append(0.0, np.cumsum(is_fraud[order])[last])
    found = np.interp(most, np.append(0.0, last + 1.0), hits)
    return float(found / max(int(is_fraud.sum()), 1))


def reviews_for_recall(scores: Scores, is_fraud: Outcomes, recall: float) -> int:
    """Return how many of the highest scores must be looked at to find this share of the frauds.

    Equal scores are looked at together.
    """
    needed = recall * int(is_fraud.sum()) - 1e-9
    if needed <= 0.0:
        return 0
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    hits = np.cumsum(is_fraud[order])[last]
    return int(last[np.searchsorted(hits, needed)]) + 1


def known_compromised(
    customers: npt.NDArray[Any],
    days: npt.NDArray[np.int64],
    past: tuple[npt.NDArray[Any], npt.NDArray[np.int64]],
    delay_days: int,
) -> Outcomes:
    """Return which transactions are of customers known as compromised on that day, bool [n].

    The Fraud Detection Handbook leaves these out when it judges: such cards are blocked. Known on
    day d are the frauds of the days before d - `delay_days`, from the train window on.

    Args:
        customers: Customers of the judged transactions, [n].
        days: Their days, int64 [n].
        past: Customers and days of the frauds from the train window on, [m] each.
        delay_days: Days until fraud is known.
    """
    first = pd.DataFrame({"customer": past[0], "day": past[1]}).groupby("customer")["day"].min()
    known_since = first.reindex(customers).to_numpy(dtype=np.float64) + delay_days
    known: Outcomes = known_since < days  # NaN: never
    return known


def calibration_table(
    scores: Scores, is_fraud: Outcomes, bins: int = _CALIBRATION_BINS
) -> list[dict[str, float | int]]:
    """Return mean score and share of fraud in bins of equally many transactions, lowest first."""
    order = np.argsort(scores, kind="stable")
    return [
        {
            "rows": len(part),
            "mean_score": float(scores[part].mean(dtype=np.float64)),
            "fraud_share": float(is_fraud[part].mean()),
        }
        for part in np.array_split(order, bins)
        if len(part)
    ]


def _error_of(table: list[dict[str, float | int]]) -> float:
    rows = sum(part["rows"] for part in table)
    gaps = (abs(part["mean_score"] - part["fraud_share"]) * part["rows"] for part in table)
    return float(sum(gaps) / rows)


def calibration_error(scores: Scores, is_fraud: Outcomes) -> float:
    """Return the mean gap between score and share of fraud over bins of equally many rows."""
    return _error_of(calibration_table(scores, is_fraud))


def card_precision(
    scores: Scores,
    is_fraud: Outcomes,
    customers: npt.NDArray[Any],
    days: npt.NDArray[np.int64],
    k: int,
    *,
    remove_detected: bool,
) -> float:
    """Return the card precision at k: the mean over days of (compromised among the top k) / k.

    Each day customers are ordered by their highest score; a customer is compromised if one of the
    day's transactions is a fraud. The definition is that of the Fraud Detection Handbook, which
    also removes customers from later days once they were found among the top k. (It moreover
    leaves out customers known as compromised: see `known_compromised`.)

    Args:
        scores: float32 [n].
        is_fraud: bool [n].
        customers: Any hashable per transaction, [n].
        days: Number of the day, int64 [n].
        k: Customers looked at in a day; days with fewer customers still count as k.
        remove_detected: Remove compromised customers that were found from later days.
    """
    frame = pd.DataFrame({"day": days, "customer": customers, "score": scores, "fraud": is_fraud})
    per_day = frame.groupby(["day", "customer"], sort=True).max().reset_index()
    detected: set[Any] = set()
    shares = []
    for _, day in per_day.groupby("day"):
        if remove_detected:
            day = day[~day["customer"].isin(detected)]
        top = day.sort_values("score", ascending=False, kind="stable").head(k)
        found = top.loc[top["fraud"], "customer"]
        detected.update(found)
        shares.append(len(found) / k)
    return float(np.mean(shares))


def evaluate(
    scores: Scores,
    is_fraud: Outcomes,
    customers: npt.NDArray[Any],
    days: npt.NDArray[np.int64],
    policy: Policy,
    *,
    k: int = CARD_PRECISION_K,
) -> dict[str, Any]:
    """Return all measures of one window by name; both outcomes must occur.

    `flags` are transactions sent to review or declined, `declines` the declined ones; accuracy is
    that of the flags, and says little where fraud is rare.
    """
    calibration = calibration_table(scores, is_fraud)
    flags = flag_measures(scores >= np.float32(policy.review_threshold), is_fraud)
    return {
        "transactions": len(scores),
        "frauds": int(is_fraud.sum()),
        "fraud_share": float(is_fraud.mean()),
        "accuracy": flags["accuracy"],
        "roc_auc": float(roc_auc_score(is_fraud, scores)),
        "average_precision": float(average_precision_score(is_fraud, scores)),
        "flags": flags,
        "declines": flag_measures(scores >= np.float32(policy.decline_threshold), is_fraud),
        "recall_at_fpr": {
            f"{rate:g}": recall_at_fpr(scores, is_fraud, rate) for rate in _FALSE_POSITIVE_RATES
        },
        "card_precision": {
            "k": k,
            "detected_removed": card_precision(
                scores, is_fraud, customers, days, k, remove_detected=True
            ),
            "all_customers": card_precision(
                scores, is_fraud, customers, days, k, remove_detected=False
            ),
        },
        "brier": float(brier_score_loss(is_fraud, scores)),
        "log_loss": float(log_loss(is_fraud, scores.astype(np.float64), labels=[False, True])),
        "calibration_error": _error_of(calibration),
        "calibration": calibration,
    }
