"""Schedules of arrivals: how many, how dense, and where."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.arrivals import CONSTANT, SHAPES, due_times_s


def mean_share(shape: str) -> float:
    times, shares = np.array(SHAPES[shape]).T
    return float(((shares[1:] + shares[:-1]) / 2 * np.diff(times)).sum())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rate_per_s", "duration_s"), [(30.0, 2.0), (977.0, 61.0)])
def test_as_many_as_the_rate_brings_and_never_denser(
    shape: str, rate_per_s: float, duration_s: float
) -> None:
    due_s = due_times_s(shape, rate_per_s, duration_s)
    assert len(due_s) == pytest.approx(mean_share(shape) * rate_per_s * duration_s, abs=1)
    assert due_s[0] == 0
    assert due_s[-1] < duration_s
    gaps_s = np.diff(due_s)
    assert gaps_s.min() >= 1 / rate_per_s * (1 - 1e-3)
    assert gaps_s.min() == pytest.approx(1 / rate_per_s, rel=0.1)  # the rate is reached


def test_a_constant_rate_is_even() -> None:
    assert due_times_s(CONSTANT, 50.0, 2.0) == pytest.approx(np.arange(100) / 50)


def test_a_spike_is_three_times_the_rest_from_one_moment_to_the_next() -> None:
    due_s = due_times_s("spike", 300.0, 10.0)
    counts, _ = np.histogram(due_s, bins=10, range=(0, 10))
    assert counts == pytest.approx([100] * 4 + [300] * 2 + [100] * 4, abs=1)
    assert np.diff(due_s[(due_s > 4.01) & (due_s < 5.99)]) == pytest.approx(1 / 300)


def test_a_ramp_rises_and_then_holds() -> None:
    counts, _ = np.histogram(due_times_s("ramp", 200.0, 10.0), bins=10, range=(0, 10))
    assert (np.diff(counts[:8]) > 0).all()
    # The mean of a second's ends: 0.1 + 0.9 * (t + 0.5) / 8 of the rate.
    assert counts[3] == pytest.approx(200 * (0.1 + 0.9 * 3.5 / 8), abs=1)
    assert counts[8:] == pytest.approx([200, 200], abs=1)


def test_a_soak_has_ten_waves() -> None:
    counts, _ = np.histogram(due_times_s("soak", 1_000.0, 100.0), bins=100, range=(0, 100))
    middle = counts > 750
    assert np.count_nonzero(np.diff(middle.astype(int)) == 1) == 10
    assert counts.max() <= 1_000
    assert counts.min() >= 500
