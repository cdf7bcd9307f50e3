"""Drift distances: the formulas, the parts of the day, unknown words, and the ring of blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import ks_2samp

from flagger.drift import (
    BLOCK_ROWS,
    NAMES,
    SCORE,
    WATCHED,
    DriftLimits,
    DriftReference,
    DriftWindow,
    alarms,
)
from flagger.features import CATEGORY_FIELDS, FEATURE_NAMES

AMOUNT, HOUR = FEATURE_NAMES.index("amount"), FEATURE_NAMES.index("hour_of_day")
COUNTRY = FEATURE_NAMES.index("country_code")
WINDOW = 4 * BLOCK_ROWS
Rows = npt.NDArray[np.float32]


def rows_of(n: int, seed: int, *, hours: tuple[int, int] = (0, 24)) -> Rows:
    """Payments whose amounts are larger by day, with 2 % of the countries unknown."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, len(FEATURE_NAMES))).astype(np.float32)
    rows[:, HOUR] = rng.integers(*hours, size=n)
    day = np.exp(1.2 * np.sin((rows[:, HOUR] - 9) * np.pi / 12))  # 0.3 at night, 3.3 at 15:00
    rows[:, AMOUNT] = np.exp(rng.normal(size=n)) * day
    for field in CATEGORY_FIELDS:
        codes = rng.integers(1, 9, size=n)
        rows[:, FEATURE_NAMES.index(f"{field}_code")] = np.where(rng.random(n) < 0.02, 0, codes)
    return rows


def scores_of(rows: Rows) -> npt.NDArray[np.float32]:
    return (1 / (1 + np.exp(-rows[:, 10]))).astype(np.float32)


def window_on(rows: Rows, keys: npt.NDArray[np.uint64] | None = None) -> DriftWindow:
    reference = rows_of(5_000, seed=1)
    window = DriftWindow(DriftReference.of(reference, scores_of(reference)), WINDOW)
    if keys is None:
        keys = np.ones((len(rows), len(CATEGORY_FIELDS)), dtype=np.uint64)
    scores, at = scores_of(rows), 0
    while at < len(rows):
        at += window.add(rows[at : at + 333], scores[at : at + 333], keys[at : at + 333])
    return window


def test_the_same_traffic_raises_no_alarm() -> None:
    found = window_on(rows_of(WINDOW, seed=2)).distances()
    assert alarms(found, DriftLimits()) == []
    assert found.psi.max() < 0.02
    assert found.unknown == pytest.approx(found.unknown_before, abs=0.01)


def test_psi_is_the_formula_and_ks_a_lower_bound_of_the_true_one() -> None:
    reference, now = rows_of(5_000, seed=1), rows_of(WINDOW, seed=3)
    now[:, 10] += 0.5
    found = window_on(now).distances()
    edges = np.quantile(reference[:, 10], np.linspace(0, 1, 11)[1:-1])
    p = np.bincount(np.searchsorted(edges, now[:, 10]), minlength=10) / WINDOW
    q = np.bincount(np.searchsorted(edges, reference[:, 10]), minlength=10) / 5_000
    assert found.psi[10] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=0.05)
    true = ks_2samp(now[:, 10], reference[:, 10]).statistic
    assert true - 0.1 <= found.ks[10] <= true + 0.005
    raised = alarms(found, DriftLimits())
    assert {alarm.name for alarm in raised} == {NAMES[10], SCORE}
    assert {alarm.kind for alarm in raised} == {"feature", "score"}


def test_a_window_of_nights_is_compared_with_nights() -> None:
    nights = window_on(rows_of(WINDOW, seed=4, hours=(0, 6))).distances()
    assert alarms(nights, DriftLimits()) == []
    by_day = rows_of(WINDOW, seed=5, hours=(12, 18))
    by_day[:, AMOUNT] *= 0.1  # as small as at night: that is new by day
    assert [a.name for a in alarms(window_on(by_day).distances(), DriftLimits())] == ["amount"]


def test_missing_values_are_a_bin_of_their_own() -> None:
    now = rows_of(WINDOW, seed=6)
    now[: WINDOW // 5, 12] = np.nan
    found = window_on(now).distances()
    assert found.missing[12] == pytest.approx(0.2)
    assert [a.name for a in alarms(found, DriftLimits())] == [NAMES[12]]
    assert found.ks[12] < 0.05  # the values that are there are as before


def test_new_words_and_fields_that_are_not_sent_are_told_apart() -> None:
    now = rows_of(WINDOW, seed=7)
    keys = np.ones((WINDOW, len(CATEGORY_FIELDS)), dtype=np.uint64)
    now[:100, COUNTRY] = 0  # 5 % from a new country
    now[:200, FEATURE_NAMES.index("channel_code")] = 0
    keys[:200, CATEGORY_FIELDS.index("channel")] = 0  # 10 % without a channel
    found = window_on(now, keys).distances()
    raised = {a.name: a for a in alarms(found, DriftLimits()) if a.kind == "unknown"}
    assert set(raised) == {"country", "channel"}
    assert found.absent.tolist() == [0.0, 0.0, 0.1, 0.0]
    assert raised["channel"].value == pytest.approx(0.12, abs=0.01)


def test_the_window_forgets() -> None:
    drifted = rows_of(WINDOW, seed=8)
    drifted[:, AMOUNT] *= 5
    before = window_on(drifted).distances()
    after = window_on(np.concatenate([drifted, rows_of(WINDOW, seed=9)])).distances()
    assert before.psi[AMOUNT] > 0.3
    assert after.psi[AMOUNT] < 0.02


def test_it_says_nothing_before_it_is_full_and_takes_any_cut() -> None:
    rows = rows_of(WINDOW, seed=10)
    window = window_on(rows[: WINDOW - 1])
    keys = np.ones((1, len(CATEGORY_FIELDS)), dtype=np.uint64)
    states = [window.is_full]
    assert window.add(rows[-1:], scores_of(rows[-1:]), keys) == 1
    assert [*states, window.is_full] == [False, True]
    np.testing.assert_array_equal(window.distances().psi, window_on(rows).distances().psi)


def test_columns_that_drift_by_nature_raise_no_alarm() -> None:
    by_nature = {name for name, watched in zip(NAMES, WATCHED, strict=True) if not watched}
    assert {"hour_of_day", "is_weekend", "customer_days_since_first", "customer_count"} < by_nature
    assert "customer_count_24h" not in by_nature
    assert len(by_nature) == 12
    now = rows_of(WINDOW, seed=11)
    now[:, FEATURE_NAMES.index("customer_days_since_first")] += 90
    found = window_on(now).distances()
    assert found.psi.max() > 1
    assert alarms(found, DriftLimits()) == []


def test_a_column_without_any_value_or_with_one_is_no_trouble() -> None:
    reference = rows_of(2_000, seed=1)
    reference[:, 12], reference[:, 13] = np.nan, 7.0
    window = DriftWindow(DriftReference.of(reference, scores_of(reference)), BLOCK_ROWS)
    now = rows_of(BLOCK_ROWS, seed=2)
    now[:, 12], now[:, 13] = np.nan, 7.0
    window.add(now, scores_of(now), np.ones((BLOCK_ROWS, 4), dtype=np.uint64))
    found = window.distances()
    assert np.isfinite(found.psi).all()
    assert np.isfinite(found.ks).all()
    assert found.psi[[12, 13]].max() < 0.01


@pytest.mark.parametrize("now_is", [6.0, 8.0])
def test_a_column_that_never_changed_is_seen_to_fall_and_to_rise(now_is: float) -> None:
    reference = rows_of(2_000, seed=1)
    reference[:, 13] = 7.0
    window = DriftWindow(DriftReference.of(reference, scores_of(reference)), BLOCK_ROWS)
    now = rows_of(BLOCK_ROWS, seed=2)
    now[:, 13] = now_is
    window.add(now, scores_of(now), np.ones((BLOCK_ROWS, 4), dtype=np.uint64))
    found = window.distances()
    assert FEATURE_NAMES[13] in [alarm.name for alarm in alarms(found, DriftLimits())]
    assert found.ks[13] > 0.9
