"""Labels, honestly: young days and days without labels are not judged, corrections count."""

from __future__ import annotations

import math
from datetime import date
from typing import Any

import msgspec
import pytest

from train.matured import Totals, judge_days, read_decisions, read_labels, total

DAY_MS = 86_400_000
FIRST = date(2026, 1, 1).toordinal() - date(1970, 1, 1).toordinal()


def decision(number: int, day: int, what: str, version: str = "1") -> bytes:
    return msgspec.json.encode(
        {
            "transaction_id": f"t{number}",
            "customer_id": "c",
            "event_time": (FIRST + day) * DAY_MS + 5,
            "amount": 1.0,
            "decision": what,
            "decision_source": "model",
            "model_version": version,
        }
    )


def label(number: int, *, is_fraud: bool) -> bytes:
    fields: dict[str, Any] = {"source": "analyst", "labelled_at": 1, "terminal_id": "m"}
    return msgspec.json.encode(
        {"transaction_id": f"t{number}", "is_fraud": is_fraud, "event_time": 1, **fields}
    )


DECISIONS = [
    [decision(1, 0, "decline"), decision(2, 0, "approve"), decision(3, 0, "review")],
    [decision(4, 1, "approve"), decision(5, 1, "decline")],
    [decision(6, 2, "approve"), decision(7, 2, "approve", "2"), decision(8, 20, "decline")],
    [b"", b"no decision", decision(9, 0, "perhaps")],  # a tombstone, or of another program
]
LABELS = [
    [label(1, is_fraud=True), label(2, is_fraud=False), b"no label"],
    [label(2, is_fraud=True), label(3, is_fraud=False), label(7, is_fraud=True)],
    [label(8, is_fraud=True), label(99, is_fraud=True)],
]


def test_each_day_is_judged_as_far_as_its_labels_allow() -> None:
    outcomes = judge_days(read_decisions(DECISIONS), read_labels(LABELS), 14)
    assert [(str(o.day), o.state) for o in outcomes] == [
        ("2026-01-01", "judged"),
        ("2026-01-02", "no labels"),
        ("2026-01-03", "judged"),
        ("2026-01-21", "too young"),
    ]
    first = outcomes[0].totals  # t2's later label corrects the first one
    assert first == Totals(3, 2, 1, labelled=3, frauds=2, caught=1, declined_frauds=1)
    assert (first.precision, first.recall) == (0.5, 0.5)
    assert outcomes[1].totals == Totals(decisions=2, flagged=1, declined=1)
    assert outcomes[2].totals.recall == 0.0
    assert math.isnan(outcomes[2].totals.precision)
    assert outcomes[3].totals.frauds == 0  # its label is there, but others may be missing
    assert total(outcomes) == Totals(5, 2, 1, labelled=4, frauds=3, caught=1, declined_frauds=1)


def test_a_version_is_judged_by_its_own_decisions() -> None:
    decided, labels = read_decisions(DECISIONS), read_labels(LABELS)
    (day,) = judge_days(decided, labels, 14, version="2")
    assert (day.totals.decisions, day.totals.frauds, day.state) == (1, 1, "judged")
    assert judge_days(decided, labels, 14, version="7") == []


def test_without_decisions_there_is_nothing_to_judge() -> None:
    assert judge_days(read_decisions([]), {}, 14) == []
    assert total([]).decisions == 0
    assert math.isnan(total([]).recall)


@pytest.mark.parametrize("maturity_days", [0, 19])
def test_the_maturity_window_decides_what_is_young(maturity_days: int) -> None:
    outcomes = judge_days(read_decisions(DECISIONS), read_labels(LABELS), maturity_days)
    young = [str(o.day) for o in outcomes if o.state == "too young"]
    assert young == {0: [], 19: ["2026-01-03", "2026-01-21"]}[maturity_days]
