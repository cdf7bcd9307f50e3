"""The brakes: as a plain loop would do it, whatever the batches, and bounded from the start."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagger.brakes import BRAKE_CODE, RELEASE_SHARE, BrakeLimits, Brakes
from flagger.policy import APPROVE, DECLINE, REVIEW


def by_the_book(wanted: list[int], limits: BrakeLimits) -> list[bool]:
    """One decision after the other, as the documentation says it."""
    engaged = {"decline": False, "flag": False}
    held = []
    for i, code in enumerate(wanted):
        window = wanted[max(0, i + 1 - limits.window_decisions) : i + 1]
        size = max(len(window), min(limits.min_decisions, limits.window_decisions))
        counted = {
            "decline": (window.count(DECLINE), limits.decline_share),
            "flag": (len(window) - window.count(APPROVE), limits.flag_share),
        }
        for name, (count, share) in counted.items():
            if count > share * size:
                engaged[name] = True
            elif count <= RELEASE_SHARE * share * size:
                engaged[name] = False
        held.append(code == DECLINE and any(engaged.values()))
    return held


@given(
    wanted=st.lists(st.integers(0, 2), max_size=120),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    window=st.integers(10, 40),
    least=st.integers(1, 50),
    shares=st.tuples(st.sampled_from([0.1, 0.3, 1.0]), st.sampled_from([0.2, 0.5, 1.0])),
)
def test_batches_decide_as_one_by_one(
    wanted: list[int], cuts: list[int], window: int, least: int, shares: tuple[float, float]
) -> None:
    limits = BrakeLimits(*shares, window, least)
    brakes = Brakes(limits)
    edges = [0, *sorted(min(cut, len(wanted)) for cut in cuts), len(wanted)]
    codes = np.array(wanted, dtype=np.uint8)
    held: list[bool] = []
    for start, end in itertools.pairwise(edges):
        held += brakes.held(codes[start:end]).tolist()
    assert held == by_the_book(wanted, limits)


def codes(n: int, share: float, code: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    hits = np.random.default_rng(seed).random(n) < share
    return np.where(hits, np.uint8(code), np.uint8(APPROVE)).astype(np.uint8)


def test_a_model_that_declines_everybody_turns_away_fifty_customers() -> None:
    counted: list[int] = []
    brakes = Brakes(BrakeLimits(), counted.append)
    everybody = np.full(100_000, DECLINE, dtype=np.uint8)
    assert (~brakes.held(everybody)).sum() == 50
    assert counted == [99_950]
    assert brakes.is_engaged("decline")
    assert brakes.is_engaged("flag")
    brakes.reset()
    assert not brakes.is_engaged("decline")


def test_a_healthy_model_never_feels_them_and_a_better_one_frees_itself() -> None:
    brakes = Brakes(BrakeLimits())
    assert not brakes.held(codes(1_000_000, 0.01, DECLINE)).any()
    assert brakes.held(codes(10_000, 0.5, DECLINE)).any()
    assert brakes.is_engaged("decline")
    brakes.held(codes(10_000, 0.01, DECLINE, seed=1))
    assert not brakes.is_engaged("decline")
    assert not brakes.held(codes(10_000, 0.01, DECLINE, seed=2)).any()


def test_reviews_stay_reviews_and_a_flood_of_them_stops_declines() -> None:
    brakes = Brakes(BrakeLimits())
    assert not brakes.held(codes(10_000, 0.5, REVIEW)).any()
    assert brakes.is_engaged("flag")
    assert not brakes.is_engaged("decline")
    assert brakes.held(np.array([DECLINE, REVIEW, APPROVE], dtype=np.uint8)).tolist() == [
        True,
        False,
        False,
    ]


def test_a_share_of_one_turns_them_off() -> None:
    brakes = Brakes(BrakeLimits(1.0, 1.0))
    assert not brakes.held(np.full(50_000, DECLINE, dtype=np.uint8)).any()


def test_the_reason_names_the_limits() -> None:
    reason = Brakes(BrakeLimits()).reason()
    assert reason.code == BRAKE_CODE
    assert "0.05 of the last 10,000" in reason.text


@pytest.mark.parametrize("n", [1, 4_096])
def test_batches_of_any_size_have_an_answer(n: int) -> None:
    brakes = Brakes(BrakeLimits())
    assert brakes.held(np.zeros(0, dtype=np.uint8)).shape == (0,)
    assert brakes.held(codes(n, 0.01, DECLINE)).shape == (n,)
