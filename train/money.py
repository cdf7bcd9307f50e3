"""Decisions in money: what fraud, reviews and annoyed customers cost; cheapest thresholds."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.policy import APPROVE, DECLINE, REVIEW, Policy

__all__ = ["CostMatrix", "cheapest_thresholds", "money_saved", "policy_of_costs"]

Amounts = npt.NDArray[np.float32]
Outcomes = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CostMatrix:
    """What each decision costs, in the unit of the amounts.

    |         | genuine         | fraud         |
    |---------|-----------------|---------------|
    | approve | 0               | the amount    |
    | review  | `review_cost`   | `review_cost` |
    | decline | `friction_cost` | 0             |

    A reviewer is taken to recognise every fraud and to let every genuine transaction pass.

    Attributes:
        review_cost: One review: the analyst's minutes and the customer's wait.
        friction_cost: One genuine transaction declined: lost margin and an annoyed customer.
    """

    review_cost: float = 5.0
    friction_cost: float = 30.0

    def __post_init__(self) -> None:
        for name, cost in asdict(self).items():
            if not 0.0 <= cost < math.inf:  # NaN is neither
                raise ConfigurationError(f"{name} is {cost}; a cost is a number, 0 or more.")


def money_saved(
    decisions: npt.NDArray[np.uint8], is_fraud: Outcomes, amounts: Amounts, costs: CostMatrix
) -> float:
    """Return fraud amounts caught, less reviews and friction; 0 is what approving all saves.

    Args:
        decisions: Codes of `flagger.policy.DECISIONS`, uint8 [n].
        is_fraud: bool [n].
        amounts: float32 [n].
        costs: What each decision costs.
    """
    caught = float(amounts[(decisions != APPROVE) & is_fraud].sum(dtype=np.float64))
    reviews = int((decisions == REVIEW).sum())
    annoyed = int(((decisions == DECLINE) & ~is_fraud).sum())
    return caught - costs.review_cost * reviews - costs.friction_cost * annoyed


def cheapest_thresholds(
    scores: npt.NDArray[np.float32], is_fraud: Outcomes, amounts: Amounts, costs: CostMatrix
) -> tuple[float, float]:
    """Return the review and decline threshold that would have saved most on these transactions.

    With transactions ordered by falling score, the saving of flagging the first i and declining
    the first j <= i of them is A(i) + B(j): A counts what reviews save, B what declines save over
    reviews. So the best pair is found in one pass. Equal scores are decided alike.

    Returns:
        Thresholds, inclusive, each the score of a transaction; infinity where nothing is flagged.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, fraud = scores[order], is_fraud[order]
    last_of_ties = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    review_gain = np.where(fraud, amounts[order], 0.0).astype(np.float64) - costs.review_cost
    decline_gain = costs.review_cost - np.where(fraud, 0.0, costs.friction_cost)
    by_review = np.append(0.0, np.cumsum(review_gain)[last_of_ties])
    by_decline = np.append(0.0, np.cumsum(decline_gain)[last_of_ties])
    thresholds = np.append(np.inf, ranked[last_of_ties].astype(np.float64))
    best_decline = np.maximum.accumulate(by_decline)
    flagged = int(np.argmax(by_review + best_decline))
    declined = int(np.argmax(by_decline[: flagged + 1]))
    return float(thresholds[flagged]), float(thresholds[declined])


def policy_of_costs(
    scores: npt.NDArray[np.float32],
    is_fraud: Outcomes,
    amounts: Amounts,
    costs: CostMatrix,
    version: str,
) -> Policy:
    """Return the policy of the cheapest thresholds; a threshold out of reach becomes 1."""
    smallest = float(np.finfo(np.float32).tiny)
    review, decline = cheapest_thresholds(scores, is_fraud, amounts, costs)
    review, decline = (max(min(value, 1.0), smallest) for value in (review, decline))
    return Policy(version, review, decline)
