"""Records on their way to the store: nothing is lost, and memory stays within its limit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from flagger.features import TransactionBatch
from flagger.settings import Settings
from flagger.state.store import StateStore
from streamer.hot_state import HotState
from tests.streamer.one_terminal import CONTRACT, activity, stored_count, stored_marks

ACTIVITY = activity(3)
NOBODYS, WRITERS, LATER = {1: 0}, {0: 0, 1: 0}, {0: 5, 1: 5}
"""Committed offsets by partition; who owns partition 0 writes the terminals."""


def test_what_was_counted_before_the_takeover_is_written_after_it(url: str) -> None:
    state = HotState(CONTRACT, StateStore(url), Settings())
    state.plan(NOBODYS)
    state.engine.apply_activity(ACTIVITY, offset=0)
    state.flush(NOBODYS, {"activity": 1})
    assert stored_count(url) == 0  # another streamer writes them
    state.let_go()
    state.plan(WRITERS)
    state.flush(WRITERS, {"activity": 1})
    assert stored_marks(url) == {"activity": 1}
    assert stored_count(url) == 3
    state.close()


def test_what_was_copied_and_dropped_is_written_later(url: str) -> None:
    state = HotState(CONTRACT, StateStore(url), Settings())
    state.plan(WRITERS)
    state.engine.apply_activity(ACTIVITY, offset=0)
    state.begin_round(LATER, {"activity": 1})
    state.advance(LATER, WRITERS)  # waits for a commit that never comes
    state.let_go()
    state.plan(WRITERS)
    state.flush(WRITERS, {"activity": 1})
    assert stored_count(url) == 3
    state.close()


def test_without_partitions_nothing_is_said_to_be_stored(url: str) -> None:
    """The broker went away: the piece that waited for its commit is dropped with the partitions."""
    state = HotState(CONTRACT, StateStore(url), Settings())
    state.plan(WRITERS)
    state.engine.apply_activity(ACTIVITY, offset=0)
    state.begin_round(LATER, {"activity": 1})
    state.advance(LATER, WRITERS)
    state.let_go()
    state.engine.apply_activity(ACTIVITY, offset=1)
    state.flush({}, {"activity": 2})
    assert stored_marks(url) == {}
    assert stored_count(url) == 0
    state.plan(WRITERS)
    state.flush(WRITERS, {"activity": 2})
    assert stored_marks(url) == {"activity": 2}
    assert stored_count(url) == 6
    state.close()


def customers(first: int, n: int) -> TransactionBatch:
    """One transaction of each of n customers."""
    keys = np.arange(first, first + n, dtype=np.uint64)
    return TransactionBatch(
        transaction_key=keys + np.uint64(10**6),
        customer_key=keys,
        terminal_key=np.full(n, 77, dtype=np.uint64),
        event_time_ms=np.full(n, 1_767_225_600_000, dtype=np.int64),
        amount=np.full(n, 10.0),
        category_keys=np.zeros((n, 4), dtype=np.uint64),
    )


class TestRoomForCustomers:
    LIMIT = 1_000

    @pytest.fixture
    def state(self, url: str) -> Iterator[HotState]:
        settings = Settings(max_customers_in_memory=self.LIMIT)
        state = HotState(CONTRACT, StateStore(url), settings)
        state.plan(WRITERS)
        yield state
        state.close()

    def process(self, state: HotState, batch: TransactionBatch) -> None:
        state.load(batch.customer_key, lambda: state.flush(LATER, {"activity": 0}))
        state.engine.process(batch, count_at_terminals=False)

    def test_no_more_than_the_limit_and_nobody_is_forgotten(self, state: HotState) -> None:
        for first in range(0, 5_000, 500):
            self.process(state, customers(first, 500))
            assert len(state.engine.customers) <= self.LIMIT
        assert state.evicted >= 4_000
        assert state.created == 5_000
        for first in range(0, 5_000, 500):  # each comes back with its one transaction
            state.load(np.arange(first, first + 500, dtype=np.uint64))
            counts = [state.engine.customers.get(key) for key in range(first, first + 500)]
            assert [int(c["count"][0]) for c in counts if c is not None] == [1] * 500
        assert state.created == 5_000

    def test_the_least_recently_used_ones_go(self, state: HotState) -> None:
        self.process(state, customers(0, 400))
        self.process(state, customers(1_000, 600))
        self.process(state, customers(0, 10))
        self.process(state, customers(5_000, 100))
        kept = [state.engine.customers.get(key) is not None for key in range(400)]
        assert all(kept[:10])
        assert not all(kept[10:])
        assert all(state.engine.customers.get(key) is not None for key in range(1_000, 1_600))

    def test_what_is_not_in_the_store_stays(self, state: HotState) -> None:
        self.process(state, customers(0, self.LIMIT))
        state.begin_round(LATER, {})
        state.advance(LATER, WRITERS)  # clean now, but waits for a commit
        self.process(state, customers(5_000, 100))
        state.load(np.arange(self.LIMIT, dtype=np.uint64), lambda: None)
        assert state.created == self.LIMIT + 100


def test_marks_follow_after_the_last_piece(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.hot_state.RECORDS_PER_PIECE", 100)
    state, store = HotState(CONTRACT, StateStore(url), Settings()), StateStore(url)
    state.plan(WRITERS)
    state.engine.process(customers(0, 250), count_at_terminals=False)
    state.engine.apply_activity(ACTIVITY, offset=0)
    state.begin_round({0: 3, 1: 3}, {"activity": 1})
    finished = 0
    while finished < 3:  # 100, 100, and 50 with the terminal
        if finished < 2:
            assert store.read_marks(Settings().consumer_group) == {}
        finished += state.advance(LATER, LATER)
        if finished == 1:
            state.engine.process(customers(1_000, 10), count_at_terminals=False)  # next round's
    assert store.read_marks(Settings().consumer_group) == {"0": 3, "1": 3}
    assert store.read_marks(f"{Settings().consumer_group}:side-logs") == {"activity": 1}
    assert len(store.read("customer", np.arange(250, dtype=np.uint64))) == 250
    assert len(store.read("customer", np.arange(1_000, 1_010, dtype=np.uint64))) == 0
    assert state.engine.customers.count_dirty() == 10
    state.close()
    store.close()
