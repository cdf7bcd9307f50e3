"""Days judged as labels come: the same figures as from whole topics, in bounded memory."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from flagger.features.hashing import key_of
from flagger.policy import APPROVE, DECISIONS, DECLINE, REVIEW
from train.labels_metrics import LabelsMetrics
from train.matured import judge_days, read_decisions, read_labels, total
from train.maturing import MaturingDays

DAY_MS = 86_400_000
FIRST = 20_454  # 2026-01-01


def put(days: MaturingDays, key: int, day: int, code: int) -> None:
    days.decide(key, (FIRST + day) * DAY_MS + 5, code, is_flagged=code != APPROVE)


def put_label(days: MaturingDays, key: int, day: int, *, is_fraud: bool) -> None:
    days.label(key, (FIRST + day) * DAY_MS + 5, is_fraud=is_fraud)


EVENTS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from((APPROVE, REVIEW, DECLINE))),
    min_size=1,
    max_size=60,
)
LABELS = st.lists(st.tuples(st.integers(0, 59), st.booleans()), max_size=80)


@given(events=EVENTS, labels=LABELS, maturity_days=st.integers(0, 6), seed=st.randoms())
@settings(max_examples=200, deadline=None)
def test_the_figures_are_those_of_the_whole_topics(
    events: list[tuple[int, int]],
    labels: list[tuple[int, bool]],
    maturity_days: int,
    seed: object,
) -> None:
    """Whatever comes first, decisions or labels; the latest label of each counts."""
    of_decided = [(number, is_fraud) for number, is_fraud in labels if number < len(events)]
    told: list[tuple[bool, int]] = [(True, i) for i in range(len(events))]
    told += [(False, i) for i in range(len(of_decided))]
    seed.shuffle(told)  # type: ignore[attr-defined]
    days = MaturingDays(maturity_days, window_days=30)
    for is_decision, place in told:
        if is_decision:
            put(days, key_of(f"t{place}"), *events[place])
    for number, is_fraud in of_decided:
        put_label(days, key_of(f"t{number}"), events[number][0], is_fraud=is_fraud)
    decided = read_decisions(
        [
            [
                msgspec.json.encode(
                    {
                        "transaction_id": f"t{place}",
                        "event_time": (FIRST + day) * DAY_MS + 5,
                        "decision": DECISIONS[code],
                    }
                )
                for place, (day, code) in enumerate(events)
            ]
        ]
    )
    values = [
        msgspec.json.encode(
            {
                **{"transaction_id": f"t{number}", "is_fraud": is_fraud, "source": "analyst"},
                **{"labelled_at": 1, "terminal_id": "m", "event_time": 1},
            }
        )
        for number, is_fraud in of_decided
    ]
    outcomes = judge_days(decided, read_labels([values]), maturity_days)
    found = days.judged()
    assert found.totals == total(outcomes)
    states = [outcome.state for outcome in outcomes]
    assert (found.days, found.unlabelled_days) == (
        states.count("judged"),
        states.count("no labels"),
    )


def test_labels_before_their_decisions_count_too() -> None:
    days = MaturingDays(1, window_days=10)
    put_label(days, 1, 0, is_fraud=True)
    put(days, 1, 0, DECLINE)
    put(days, 2, 1, APPROVE)
    totals = days.judged().totals
    assert (totals.frauds, totals.caught, totals.declined_frauds) == (1, 1, 1)


def test_days_behind_the_window_are_forgotten() -> None:
    days = MaturingDays(2, window_days=3)
    for day in range(9):
        put(days, day, day, REVIEW)
        put_label(days, day, day, is_fraud=day != 5)
    found = days.judged()
    assert (found.days, found.newest_day) == (3, FIRST + 6)  # days 4, 5 and 6 of 0 to 8
    assert found.totals.precision == pytest.approx(2 / 3)
    held = days.held_keys
    assert held == 2 * 5
    put(days, 99, 0, DECLINE)  # much too late
    put_label(days, 99, 0, is_fraud=True)
    assert days.held_keys == held


def test_the_oldest_day_goes_if_too_much_is_held() -> None:
    forgotten: list[int] = []
    days = MaturingDays(1, window_days=9, max_keys=4, on_forgotten=forgotten.append)
    for key, day in enumerate((0, 0, 1, 1, 2, 2)):
        put(days, key, day, REVIEW)
    assert forgotten == [FIRST]
    assert days.held_keys == 4
    put(days, 9, 0, REVIEW)  # of the day that was given up
    assert days.held_keys == 4


def value(metrics: LabelsMetrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(f"flagger_labels_{name}", labels)
    assert found is not None, name
    return found


def test_an_alarm_needs_enough_frauds() -> None:
    metrics = LabelsMetrics(CollectorRegistry())
    days = MaturingDays(1, window_days=10)
    for key in range(10):  # half of the frauds are approved
        put(days, key, 0, REVIEW if key % 2 else APPROVE)
        put_label(days, key, 0, is_fraud=True)
    put(days, 99, 1, APPROVE)
    least = {"precision": 0.9, "recall": 0.6}
    metrics.show(days.judged(), least, 11)
    assert value(metrics, "alarm", measure="recall") == 0
    metrics.show(days.judged(), least, 10)
    assert value(metrics, "alarm", measure="recall") == 1
    assert value(metrics, "alarm", measure="precision") == 0
    assert (value(metrics, "recall"), value(metrics, "precision")) == (0.5, 1.0)
    assert value(metrics, "newest_judged_day_timestamp_seconds") == FIRST * 86_400


def test_the_watch_starts_without_what_it_does_not_need() -> None:
    """Trees and plots are 200 MB of a process that runs all the time, and a second of its start."""
    heavy = ["matplotlib", "pandas", "pyarrow", "sklearn", "xgboost"]
    code = f"import sys, train.drift_cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
