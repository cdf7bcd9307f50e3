"""What is stored goes on from where it is, and never claims more than was read."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flagger.errors import ConfigurationError
from flagger.state.store import Kind, StateStore
from loadtest.crash_world import wait_until
from loadtest.stream_world import START_MS, StreamWorld, message
from streamer.metrics import StreamerMetrics
from streamer.side_logs import SideLogs

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]


def test_state_of_another_log_is_refused(stream_world: StreamWorld) -> None:
    stream_world.send([message(1)])
    stream_world.run_until(lambda _: len(stream_world.decided()) >= 1)
    group = stream_world.settings.consumer_group
    with stream_world.store() as store:
        marks = store.read_marks(group)
        store.write_marks(group, {p: v + 1_000 for p, v in marks.items()})
    with pytest.raises(ConfigurationError, match="state of another log"):
        stream_world.run_until(lambda _: False)


def test_a_stop_while_state_is_rebuilt_claims_no_more_than_was_read(
    stream_world: StreamWorld, small_training: Path
) -> None:
    table = pq.read_table(small_training.parent / "transactions.parquet").slice(0, 4_000)
    stream_world.feed(table.to_batches())
    first = stream_world.start()
    wait_until(lambda: len(stream_world.decisions()) >= 4_000, 60, "the last decision")
    first.kill()
    with stream_world.store() as store:
        store._client.flushdb()  # all of the log has to be read again
    rebuilding = stream_world.run_until(
        lambda metrics: metrics.replayed._value.get() > 0,
        max_batch_rows=16,
        state_flush_interval_ms=10**6,
    )
    assert 0 < rebuilding.replayed._value.get() < 4_000
    with stream_world.store() as store:
        marks = store.read_marks(stream_world.settings.consumer_group)
    assert sum(marks.values()) <= rebuilding.replayed._value.get()
    more = pq.read_table(small_training.parent / "transactions.parquet").slice(4_000, 500)
    stream_world.feed(more.to_batches())
    stream_world.run_until(lambda _: len(stream_world.decided()) >= 4_500)
    found = stream_world.check().decisions
    assert found.failures == []
    assert found.details == []


def demote(store: StateStore, *, undo: bool) -> None:
    store._client.replicaof(*(("NO", "ONE") if undo else ("127.0.0.1", "1")))


def fill(store: StateStore, *, undo: bool) -> None:
    store._client.config_set("maxmemory", 0 if undo else 1)


@pytest.mark.parametrize(("spoil", "says"), [(demote, "read only"), (fill, "maxmemory")])
def test_a_store_that_takes_no_writes_is_said_once_and_tried_again(
    stream_world: StreamWorld,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[..., None],
    says: str,
) -> None:
    waited: list[float] = []

    def done(metrics: StreamerMetrics) -> bool:
        waiting = metrics.registry.get_sample_value("flagger_streamer_waiting", {"part": "valkey"})
        if not waited and len(stream_world.decided()) == 1 and stream_world.is_stored():
            spoil(store, undo=False)
            stream_world.send([message(2)])
            waited.append(0)
        elif waited and waiting and len(waited) < 5:  # many attempts later
            waited.append(waiting)
            if len(waited) == 5:
                spoil(store, undo=True)
        return len(waited) == 5 and stream_world.is_stored()

    stream_world.send([message(1)])
    with stream_world.store() as store:
        try:
            stream_world.run_until(done)
        finally:
            spoil(store, undo=True)
    said = [record for record in caplog.records if says in record.getMessage()]
    assert len(said) == 1


@pytest.mark.parametrize("heir", ["0", "another"])
def test_a_label_is_stored_after_a_take_over_without_a_transaction(
    stream_world: StreamWorld, heir: str
) -> None:
    stream_world.send([message(1), message(2)])
    first = stream_world.start()
    stream_world.drain(first)
    first.stop()
    stream_world.start(heir)  # no transaction follows that would tell it how late it is
    label = {
        "transaction_id": "t1",
        "is_fraud": True,
        "source": "desk",
        "labelled_at": START_MS + 60_000,
        "terminal_id": "m1",
        "event_time": START_MS + 1_000,
    }
    stream_world.send([json.dumps(label).encode()], topic=stream_world.settings.labels_topic)
    wait_until(stream_world.is_stored, 40, "a stored label")
    with stream_world.store() as store:
        assert store.read_all("terminal")["frauds"].sum() == 1


def test_a_new_writer_that_is_behind_writes_no_terminals_before_it_has_caught_up(
    stream_world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, group = stream_world.settings.activity_topic, stream_world.settings.consumer_group
    name = f"{group}:side-logs"
    read_marked, write = StateStore.read_marked, StateStore.write
    counted: list[int] = []
    with stream_world.store() as store:
        stream_world.send([message(1)])
        stream_world.run_until(lambda _: stream_world.is_stored())
        terminals, marks = store.read_all("terminal"), store.read_marks(name)
        stream_world.send([message(6)])
        stream_world.run_until(lambda _: stream_world.is_stored())
        assert marks[topic] < store.read_marks(name)[topic]
        # The next one has read the store before the second message, and inherits only now.
        found: list[Any] = [(marks, terminals)]

        def note(self: StateStore, kind: Kind, records: Any, *claim: Any) -> None:
            if kind == "terminal" and len(records):
                counted.append(int(records["counts"].sum()))
            write(self, kind, records, *claim)

        read, starts_s = SideLogs.read, time.monotonic()

        def read_late(self: SideLogs, wait_s: float = 0.0) -> None:
            if counted or time.monotonic() - starts_s > 3:
                read(self, wait_s)

        with monkeypatch.context() as patched:
            patched.setattr(SideLogs, "read", read_late)
            patched.setattr(
                StateStore, "read_marked", lambda *a: found.pop() if found else read_marked(*a)
            )
            patched.setattr(StateStore, "write", note)
            stream_world.run_until(lambda _: bool(counted))
        assert counted[0] == 2
        assert store.read_all("terminal")["counts"].sum() == 2
