"""How good a model could be on data of the Fraud Detection Handbook's generator.

The generator compromises terminals: for 28 days every transaction there is a fraud. Before the
first of them is known, nothing tells these transactions from others, so no model can rank them
better than by chance. A perfect model, which puts all other frauds above all genuine transactions,
has an area under the ROC curve of 1 - u / 2, with u the share of these frauds.

The file does not name its scenarios. A run of frauds at a terminal, one after the other, is taken
for a compromised one if two or more are not above the amount from which on the generator calls
everything a fraud; those above it can be told by it. So this is an estimate, and it is of that
generator's data only.

Generator: Fraud Detection Handbook, chapter 3, "Transaction data simulator", scenarios 1 and 2.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from flagger.state.records import DAY_MS, TERMINAL_BUCKET_MS
from train.evaluate import TREES, Evaluation, EvaluationPlan

__all__ = ["Ceiling", "ceiling", "unforeseeable"]

_CERTAIN_AMOUNT = 220.0
"""Above it every transaction is a fraud, by the generator's first scenario."""
_LEAST_RUN = 2


@dataclass(frozen=True)
class Ceiling:
    """What could be had in one test window, and what was.

    Attributes:
        test_from: Its first day.
        test_to: Its last day.
        frauds: How many it has.
        unforeseeable: How many of them no model can rank but by chance.
        perfect_roc_auc: 1 - u / 2.
        two_sd: Twice the standard deviation of the perfect model's area: the ranks of these frauds
            are uniform, so it is 2 u / sqrt(12 k) for k of them.
        roc_auc: Measured on all frauds.
        on_unforeseeable: Measured on these and the genuine transactions; None if there are none.
        on_others: Measured on all other frauds and the genuine transactions; None if there are
            none.
    """

    test_from: str
    test_to: str
    frauds: int
    unforeseeable: int
    perfect_roc_auc: float
    two_sd: float
    roc_auc: float
    on_unforeseeable: float | None
    on_others: float | None


def unforeseeable(table: pa.Table, label_delay_days: int) -> npt.NDArray[np.bool_]:
    """Return which transactions are frauds of a compromised terminal that nobody knows of yet.

    A fraud is known as the features know it: once its half day was over `label_delay_days` ago.

    Args:
        table: Transactions in `SCHEMA`, ordered by time.
        label_delay_days: Days until fraud is known.

    Returns:
        bool [n], in the order of the table.
    """
    times = table["event_time"].cast(pa.int64()).to_numpy()
    amounts = table["amount"].to_numpy()
    outcomes = pc.fill_null(table["is_fraud"], False).to_numpy()
    terminals = table["terminal_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(terminals, kind="stable")
    fraud = outcomes[order]
    suspect = fraud & (amounts[order] <= _CERTAIN_AMOUNT)
    same_run = fraud[1:] & fraud[:-1] & (terminals[order][1:] == terminals[order][:-1])
    run = np.concatenate([[0], np.cumsum(~same_run)])  # number of the run that each belongs to
    starts = np.flatnonzero(np.concatenate([[True], ~same_run]))
    long_enough = np.bincount(run, weights=suspect)[run] >= _LEAST_RUN
    half_day = times[order] // TERMINAL_BUCKET_MS
    known_from = half_day[starts][run] + label_delay_days * DAY_MS // TERMINAL_BUCKET_MS + 1
    found = np.zeros(len(times), dtype=np.bool_)
    found[order] = suspect & long_enough & (half_day < known_from)
    return found


def ceiling(plan: EvaluationPlan, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return a `Ceiling` for each period that was evaluated, as JSON has it.

    Args:
        plan: How the file was evaluated.
        evaluation: What was found.
    """
    hidden = unforeseeable(evaluation.history.table, plan.prequential.label_delay_days)[
        evaluation.places
    ]
    scores, is_fraud = evaluation.scores[TREES], evaluation.is_fraud
    found, start = [], 0
    for period in evaluation.measures["periods"]:
        part = slice(start, start + period["transactions"])
        start = part.stop
        measured = _measure(scores[part], is_fraud[part], hidden[part])
        found.append(asdict(Ceiling(period["test_from"], period["test_to"], **measured)))
    return found


def _measure(
    scores: npt.NDArray[np.float32],
    is_fraud: npt.NDArray[np.bool_],
    hidden: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    frauds, chance = int(is_fraud.sum()), int(hidden.sum())
    share = chance / frauds

    def area(chosen: npt.NDArray[np.bool_]) -> float | None:
        kept = chosen | ~is_fraud
        return float(roc_auc_score(is_fraud[kept], scores[kept])) if chosen.any() else None

    return {
        "frauds": frauds,
        "unforeseeable": chance,
        "perfect_roc_auc": 1.0 - share / 2.0,
        "two_sd": 2.0 * share / np.sqrt(12.0 * chance) if chance else 0.0,
        "roc_auc": float(roc_auc_score(is_fraud, scores)),
        "on_unforeseeable": area(hidden),
        "on_others": area(is_fraud & ~hidden),
    }
