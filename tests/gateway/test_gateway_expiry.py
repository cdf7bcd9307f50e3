"""One timer for the time limits of many futures."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.expiry import Expiry

pytestmark = pytest.mark.anyio


async def test_what_has_no_answer_ends_at_its_own_limit_not_before() -> None:
    expiry, loop = Expiry(), asyncio.get_running_loop()
    start_s = time.monotonic()
    # The longest comes first: the timer of the first must not decide for the others.
    limits_s = {loop.create_future(): limit_s for limit_s in (0.25, 0.05, 0.15)}
    ended_s: list[float] = []
    for future, limit_s in limits_s.items():
        future.add_done_callback(lambda _: ended_s.append(time.monotonic() - start_s))
        expiry.limit(future, limit_s)
    for future, limit_s in sorted(limits_s.items(), key=lambda item: item[1]):
        with pytest.raises(TimeoutError):
            await future
        assert limit_s - 0.005 <= ended_s[-1]
    assert len(ended_s) == 3


async def test_answers_and_cancellations_stay_as_they_are_and_are_let_go() -> None:
    expiry, loop = Expiry(), asyncio.get_running_loop()
    answered, cancelled, late = (loop.create_future() for _ in range(3))
    for future in (answered, cancelled, late):
        expiry.limit(future, 0.05)
    answered.set_result(7)
    cancelled.cancel()
    with pytest.raises(TimeoutError):
        await late
    assert answered.result() == 7
    assert cancelled.cancelled()
    assert not expiry._ends
    assert expiry._timer is None


async def test_it_goes_on_after_it_had_nothing_to_wait_for() -> None:
    expiry, loop = Expiry(), asyncio.get_running_loop()
    for _ in range(2):
        future = loop.create_future()
        expiry.limit(future, 0.01)
        with pytest.raises(TimeoutError):
            await future


async def test_a_limit_that_is_over_already_ends_one_future_and_disturbs_none() -> None:
    # uvloop's handle of what is due now has no time (`when`) to compare the next limit with.
    expiry, loop = Expiry(), asyncio.get_running_loop()
    over, later = loop.create_future(), loop.create_future()
    expiry.limit(over, -0.01)
    expiry.limit(later, 0.05)
    with pytest.raises(TimeoutError):
        await over
    assert not later.done()
    later.set_result(7)
    assert await later == 7
