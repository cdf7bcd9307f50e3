"""Reasons: plain words for every feature, only what pushes the score up, never another model's."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from flagger.features import CATALOGUE, CATEGORY_FIELDS, FEATURE_NAMES, FeatureContract
from flagger.policy import Policy
from flagger.reason_texts import text_of, topic_of
from flagger.reasons import MAX_TOPICS, SCORE_CODE, TOPICS, Reason, ReasonWriter

CONTRACT = FeatureContract({field: ("DE", "5812", "ü") for field in CATEGORY_FIELDS})
POLICY = Policy("1", 0.5, 0.9)
COLUMN = {name: i for i, name in enumerate(FEATURE_NAMES)}
Rows = npt.NDArray[np.float32]


def explained(
    pushes: dict[str, float], values: dict[str, float], bias: float = -2.0
) -> list[Reason]:
    """Return the reasons of one transaction; its score is what the contributions add up to."""
    rows = np.zeros((1, len(FEATURE_NAMES)), dtype=np.float32)
    contributions = np.zeros((1, len(FEATURE_NAMES) + 1), dtype=np.float32)
    for name, value in values.items():
        rows[0, COLUMN[name]] = value
    for name, push in pushes.items():
        contributions[0, COLUMN[name]] = push
    contributions[0, -1] = bias
    scores = (1 / (1 + np.exp(-contributions.sum(axis=1)))).astype(np.float32)
    (reasons,) = ReasonWriter(POLICY, CONTRACT).write(
        rows, scores, POLICY.decide(scores), contributions
    )
    return reasons


def test_every_feature_has_a_topic_and_words_for_every_value() -> None:
    for feature in CATALOGUE:
        assert topic_of(feature) in TOPICS
        missing = [] if feature.entity == "transaction" else [math.nan]
        for value in (0.0, 1.0, 2.5, 86_399.0, *missing):
            text = text_of(feature, value, "word")
            assert text
            assert "nan" not in text.lower(), (feature, value)
            assert "\n" not in text
            assert feature.name not in text or feature.name == "amount"
    assert len(TOPICS) < 16


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("customer_count_1h", 5, "5 earlier transactions of the customer in the last hour"),
        ("customer_count_1h", 1, "1 earlier transaction of the customer in the last hour"),
        ("customer_count_24h", 0, "no earlier transactions of the customer in the last 24 hours"),
        ("customer_amount_ratio_to_mean_30d", 7.5, "amount 7.50 times the customer's mean in the"),
        ("customer_amount_sum_24h", 1234.5, "the customer spent 1,234.50 in the last 24 hours"),
        ("customer_amount_zscore", -2, "amount 2.0 standard deviations below the customer's mean"),
        ("customer_seconds_since_last", 125, "2 minutes after the customer's last transaction"),
        ("customer_country_is_new", 1, "country not used by the customer before"),
        ("customer_terminal_is_new", 1, "terminal not used by the customer before"),
        ("hour_of_day", 3.5, "at 03:30 UTC"),
        ("terminal_fraud_share_7d", 0.25, "25.0% confirmed fraud at the terminal in 7 days, as kn"),
        ("terminal_days_since_last_fraud", 2, "latest confirmed fraud at the terminal about 9 day"),
    ],
)
def test_texts_say_the_value_in_plain_words(name: str, value: float, text: str) -> None:
    assert text_of(CATALOGUE[COLUMN[name]], value).startswith(text)


def test_the_policy_comes_first_then_topics_by_weight() -> None:
    reasons = explained(
        {"customer_count_1h": 1.0, "customer_rate_to_30d_1h": 0.5, "amount": 2.0},
        {"customer_count_1h": 9, "amount": 950},
    )
    assert [reason.code for reason in reasons] == [SCORE_CODE, "amount", "velocity"]
    assert reasons[0].text.startswith("fraud score 0.8")
    assert "review threshold 0.5000" in reasons[0].text
    assert reasons[1].text == "amount 950.00"
    assert reasons[2].text == "9 earlier transactions of the customer in the last hour"


def test_a_topic_that_pulls_down_on_the_whole_is_no_reason() -> None:
    reasons = explained({"customer_count_1h": 1.0, "customer_count_7d": -2.0, "amount": 5.0}, {})
    assert [reason.code for reason in reasons] == [SCORE_CODE, "amount"]


def test_small_pushes_are_left_out_and_there_are_at_most_four() -> None:
    pushes = {"amount": 3.0, "channel_code": 2.0, "terminal_count_7d": 1.5, "country_code": 1.4}
    codes = [reason.code for reason in explained(pushes | {"hour_of_day": 0.01}, {})]
    assert codes == [SCORE_CODE, "amount", "channel", "terminal_activity"]
    assert len(codes) == 1 + MAX_TOPICS
    assert [r.code for r in explained({"amount": 4.0, "hour_of_day": 0.1}, {})][1:] == ["amount"]


@pytest.mark.parametrize(("code", "word"), [(1, "DE"), (3, "ü"), (0, "unknown"), (4, "unknown")])
def test_a_category_is_named(code: int, word: str) -> None:
    reasons = explained({"country_code": 4.0}, {"country_code": code})
    assert reasons[1].text.startswith(f"country {word}")


def rows_and_scores(n: int) -> tuple[Rows, Rows, Rows]:
    rows = np.zeros((n, len(FEATURE_NAMES)), dtype=np.float32)
    contributions = np.zeros((n, len(FEATURE_NAMES) + 1), dtype=np.float32)
    contributions[:, COLUMN["amount"]] = np.linspace(-3, 4, n)
    scores = (1 / (1 + np.exp(-contributions.sum(axis=1)))).astype(np.float32)
    return rows, scores, contributions


def test_approvals_have_no_reason_and_flagged_ones_at_least_one() -> None:
    rows, scores, contributions = rows_and_scores(40)
    codes = POLICY.decide(scores)
    for given in (contributions, None, np.full_like(contributions, np.nan)):
        for code, reasons in zip(
            codes, ReasonWriter(POLICY, CONTRACT).write(rows, scores, codes, given), strict=True
        ):
            assert (len(reasons) > 0) == (code > 0)
            assert len(reasons) <= (2 if given is contributions else 1)


def test_another_models_explanation_is_not_used() -> None:
    rows, scores, contributions = rows_and_scores(40)
    codes = POLICY.decide(scores)
    contributions[-1, 0] += 0.5  # the sum is no longer the score's margin
    contributions[-2, 0] = np.nan
    reasons = ReasonWriter(POLICY, CONTRACT).write(rows, scores, codes, contributions)
    assert [len(r) for r in reasons[-3:]] == [2, 1, 1]
    narrow = ReasonWriter(POLICY, CONTRACT).write(rows, scores, codes, contributions[:, 1:])
    assert max(len(r) for r in narrow) == 1


def test_the_documentation_names_every_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    for code in (SCORE_CODE, *TOPICS):
        assert f"`{code}`" in text
