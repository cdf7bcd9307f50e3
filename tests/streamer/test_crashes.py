"""The streamer is killed at exact points, paused and doubled: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer

from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.kafka import producer_config
from loadtest.crash_points import POINTS
from loadtest.crash_world import CrashWorld, wait_until
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline
from streamer.sink import DecisionSink
from train.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

SIZE = SimulationConfig(customers=200, terminals=120, days=45, start=date(2026, 1, 1), seed=5)
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def history() -> pa.Table:
    return pa.Table.from_batches(simulate(SIZE))


@pytest.fixture
def world(stack: LocalStack, own_valkey: LocalStack, tmp_path: Path) -> Iterator[CrashWorld]:
    url = {"valkey_url": own_valkey.addresses.valkey_url}
    settings = stack.settings().model_copy(update=url)
    with CrashWorld(settings, f"crash-{next(numbers)}", 0, tmp_path) as made:
        yield made


def parts(table: pa.Table, count: int) -> list[pa.Table]:
    size = -(-table.num_rows // count)
    return [table.slice(i * size, size) for i in range(count)]


A_FEW = ("produced", "offsets-sent", "committed", "terminals-written")
PAUSES = ("state-write-begins", "customers-written")
"""Where a streamer is stopped and finds, when it wakes, that another one has gone on."""
PAUSES_IN_A_TRANSACTION = ("produced", "offsets-sent")
"""Here the one that goes on must wait besides until the broker gives the transaction up."""


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(A_FEW, id="a-few"),
        pytest.param(tuple(set(POINTS) - set(A_FEW)), id="the-others", marks=pytest.mark.chaos),
    ],
)
def test_a_kill_at_any_point_loses_nothing(
    world: CrashWorld, history: pa.Table, points: tuple[str, ...]
) -> None:
    pieces = iter(parts(history, 2 * len(points)))
    for point in points:
        world.feed(next(pieces).to_batches())
        doomed = world.start(point=point)
        assert doomed.wait(20) == -signal.SIGKILL, f"{point}: {doomed.tail()}"
        world.feed(next(pieces).to_batches())
        world.drain(world.start()).stop()
        assert world.check().problems == [], point
    assert world.check().decisions.decided == history.num_rows


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(PAUSES, id="between-transactions"),
        pytest.param(PAUSES_IN_A_TRANSACTION, id="in-a-transaction", marks=pytest.mark.chaos),
    ],
)
def test_a_paused_streamer_that_was_replaced_spoils_nothing(
    world: CrashWorld, history: pa.Table, tmp_path: Path, points: tuple[str, ...]
) -> None:
    # Less event time than the label delay: how far the streamers are apart cannot show.
    first, second = parts(history.slice(0, 1_500), 2)
    last = history.slice(1_500, 20)  # few customers: what was spoilt of others stays to be seen
    with ExitStack() as opened:
        worlds = [
            opened.enter_context(CrashWorld(world.settings, f"paused-{point}", i + 1, tmp_path))
            for i, point in enumerate(points)
        ]
        zombies = []
        for each, point in zip(worlds, points, strict=True):
            each.feed(first.to_batches())
            zombies.append(each.start("first", point=point, how=signal.SIGSTOP))
        wait_until(lambda: all(zombie.paused for zombie in zombies), 20, "a pause of all")
        heirs = [each.start("second") for each in worlds]
        for i, each in enumerate(worlds):
            each.feed(second.to_batches())
            heirs[i] = each.drain(heirs[i], "second", 100)
        for zombie in zombies:
            zombie.send(signal.SIGCONT)
        time.sleep(1)  # time to do harm
        for i, each in enumerate(worlds):
            each.feed(last.to_batches())
            heirs[i] = each.drain(heirs[i], "second")
            zombies[i].kill()
            assert each.check().problems == [], points[i]


def test_of_two_streamers_under_one_name_the_older_is_fenced(
    world: CrashWorld, history: pa.Table
) -> None:
    first, second, third = parts(history.slice(0, 4_500), 3)
    world.feed(first.to_batches())
    older = world.start()
    wait_until(lambda: len(world.decisions()) > 0, 20, "a first decision")
    newer = world.start()
    world.feed(second.to_batches())
    assert older.wait(30) not in (None, 0), older.tail()
    world.feed(third.to_batches())
    assert world.drain(newer) is newer, newer.tail()
    newer.stop()
    assert world.check().problems == []


def test_what_a_fenced_streamer_gives_up_is_not_committed_as_it_ends(
    world: CrashWorld, history: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its heir has taken one of its two producers already, and the other one still works."""
    own = {"max_batch_rows": 100, "latency_target_ms": 5_000}  # several batches a transaction
    settings = world.settings.model_copy(update=own)
    world.feed(history.slice(0, 1_000).to_batches())
    write, calls = DecisionSink.write, itertools.count(1)

    def write_and_be_fenced(sink: DecisionSink, *arguments: Any) -> None:
        write(sink, *arguments)
        if next(calls) == 3:
            name = f"{settings.consumer_group}-{settings.instance}"
            heir = Producer(producer_config(settings) | {"transactional.id": name})
            heir.init_transactions(30)
            heir.close()
            raise StackError("fenced")

    older = Pipeline(settings, world.model, StreamerMetrics(), keep_going=lambda: True)
    monkeypatch.setattr(DecisionSink, "write", write_and_be_fenced)
    with pytest.raises(StackError, match="fenced"):
        older.run()
    monkeypatch.undo()
    assert world.decisions() == []
    heir = world.start()
    world.drain(heir).stop()
    assert world.check().problems == []
