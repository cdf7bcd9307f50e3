"""Measures of one period, models beside each other, and their intervals over the periods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from flagger.policy import Policy
from train.metrics import (
    CARD_PRECISION_K,
    calibration_error,
    card_precision,
    flag_measures,
    recall_at_budget,
    recall_at_fpr,
    reviews_for_recall,
)
from train.money import CostMatrix, money_saved, policy_of_costs
from train.prequential import interval
from train.rows import WindowRows
from train.split import Windows
from train.threshold import PolicyTargets, choose_policy, policy_for

__all__ = ["MEASURES", "JudgedPeriod", "measure", "reviews_saved", "summarise", "summarise_saved"]

Scores = npt.NDArray[np.float32]

MEASURES = {
    "roc_auc": "ROC AUC",
    "average_precision": "average precision",
    "card_precision": f"card precision at {CARD_PRECISION_K} a day, all cards",
    "card_precision_detected_removed": "the same, cards found on earlier days removed",
    "roc_auc_known_removed": "ROC AUC, known-compromised cards removed",
    "average_precision_known_removed": "average precision, the same",
    "card_precision_known_removed": f"card precision at {CARD_PRECISION_K} a day, the same",
    "recall_at_budget": "recall at the alert budget",
    "recall_at_fpr_0.001": "recall at 0.1 % false positives",
    "recall_at_fpr_0.005": "recall at 0.5 % false positives",
    "recall_at_fpr_0.01": "recall at 1 % false positives",
    "accuracy": "accuracy of the flags",
    "flagged_share": "share flagged by the policy",
    "precision": "precision of the flags",
    "recall": "recall of the flags",
    "money_saved_share": "money saved, share of the fraud's amount",
    "brier": "Brier score",
    "calibration_error": "calibration error",
}
"""Names and words of the measures, in the order of the report."""

_SAVED_BUDGETS = (0.005, 0.01, 0.02, 0.05)
"""Shares of transactions that the rules flag when reviews are compared."""


@dataclass(frozen=True)
class JudgedPeriod:
    """A period with the scores of all models.

    Attributes:
        windows: Its days.
        fit_rows: How many transactions were learned from.
        validation: Where thresholds are chosen.
        test: What is judged.
        known: Which test transactions are of customers known as compromised, bool [n].
        validation_scores: By model, float32 [m].
        test_scores: By model, float32 [n].
    """

    windows: Windows
    fit_rows: int
    validation: WindowRows
    test: WindowRows
    known: npt.NDArray[np.bool_]
    validation_scores: Mapping[str, Scores]
    test_scores: Mapping[str, Scores]

    def policy(self, model: str, targets: PolicyTargets) -> Policy:
        """Return the model's thresholds, chosen on the validation."""
        return policy_for(self.validation_scores[model], self.validation, targets)


def _both(is_fraud: npt.NDArray[np.bool_]) -> bool:
    return 0 < int(is_fraud.sum()) < len(is_fraud)


def _ranking(
    scores: Scores, test: WindowRows, chosen: npt.NDArray[np.bool_], suffix: str
) -> dict[str, float]:
    outcome = test.is_fraud[chosen]
    if not len(outcome):
        return {}
    found = {
        f"card_precision{suffix}": card_precision(
            scores[chosen],
            outcome,
            test.customers[chosen],
            test.days[chosen],
            CARD_PRECISION_K,
            remove_detected=False,
        )
    }
    if _both(outcome):
        found[f"roc_auc{suffix}"] = float(roc_auc_score(outcome, scores[chosen]))
        found[f"average_precision{suffix}"] = float(
            average_precision_score(outcome, scores[chosen])
        )
    return found


def measure(
    period: JudgedPeriod, model: str, targets: PolicyTargets, costs: CostMatrix
) -> dict[str, float]:
    """Return `MEASURES` of one model in one period; those without meaning are left out.

    Left out are probabilities of a model that has none (rules), and measures of remaining cards if
    there are none, or none of their frauds. Money: with the thresholds that were cheapest on the
    validation.
    """
    test, scores = period.test, period.test_scores[model]
    everything = np.ones(len(scores), dtype=np.bool_)
    policy = period.policy(model, targets)
    flags = flag_measures(policy.decide(scores) != 0, test.is_fraud)
    cheapest = policy_of_costs(
        period.validation_scores[model],
        period.validation.is_fraud,
        period.validation.amounts,
        costs,
        "cheapest",
    )
    saved = money_saved(cheapest.decide(scores), test.is_fraud, test.amounts, costs)
    at_stake = float(test.amounts[test.is_fraud].sum(dtype=np.float64))
    found = {
        **_ranking(scores, test, everything, ""),
        **_ranking(scores, test, ~period.known, "_known_removed"),
        "card_precision_detected_removed": card_precision(
            scores,
            test.is_fraud,
            test.customers,
            test.days,
            CARD_PRECISION_K,
            remove_detected=True,
        ),
        "recall_at_budget": recall_at_budget(scores, test.is_fraud, targets.alert_budget),
        "money_saved": saved,
        "money_saved_share": saved / max(at_stake, 1e-9),
    }
    for rate in ("0.001", "0.005", "0.01"):
        found[f"recall_at_fpr_{rate}"] = recall_at_fpr(scores, test.is_fraud, float(rate))
    for name in ("accuracy", "flagged_share", "precision", "recall"):
        found[name] = float(flags[name])
    if model != "rules":
        found["brier"] = float(brier_score_loss(test.is_fraud, scores))
        found["calibration_error"] = calibration_error(scores, test.is_fraud)
    return found


def reviews_saved(period: JudgedPeriod, model: str) -> dict[str, dict[str, float]]:
    """Return by budget how many reviews fewer than the rules' a model needs for the same recall.

    The rules' thresholds are those for the budget on the validation; the model's threshold is the
    one that reaches the rules' recall on the test, as "equal recall" means.
    """
    test = period.test
    found = {}
    for budget in _SAVED_BUDGETS:
        policy = choose_policy(
            period.validation_scores["rules"],
            period.validation.is_fraud,
            PolicyTargets(alert_budget=budget),
        )
        flags = flag_measures(policy.decide(period.test_scores["rules"]) != 0, test.is_fraud)
        if flags["flagged"] == 0 or flags["recall"] == 0:
            continue
        needed = reviews_for_recall(period.test_scores[model], test.is_fraud, flags["recall"])
        found[f"{budget:g}"] = {
            "recall": float(flags["recall"]),
            "reviews_rules": float(flags["flagged"]),
            "reviews_model": float(needed),
            "saved_share": 1.0 - needed / flags["flagged"],
        }
    return found


def summarise(per_period: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return mean and 95 % interval of each measure over the periods that have it."""
    names = [name for name in MEASURES if any(name in period for period in per_period)]
    return {
        name: {
            **asdict(
                interval(
                    (period[name] for period in per_period if name in period),
                    lowest=-np.inf if name == "money_saved_share" else 0.0,  # reviews cost, too
                    highest=1.0,
                )
            ),
            "periods": sum(name in period for period in per_period),
        }
        for name in names
    }


def summarise_saved(per_period: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return the sums, mean recall and mean share of `reviews_saved` by budget."""
    budgets = sorted({budget for period in per_period for budget in period}, key=float)
    found = {}
    for budget in budgets:
        parts = [period[budget] for period in per_period if budget in period]
        sums = {n: sum(p[n] for p in parts) for n in ("reviews_rules", "reviews_model")}
        found[budget] = {
            **sums,
            "recall": float(np.mean([part["recall"] for part in parts])),
            "saved_share": asdict(interval((part["saved_share"] for part in parts), highest=1.0)),
        }
    return found
