"""Several streamers work off one log of history: the features are those of the offline replay."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from flagger.settings import Settings
from loadtest.crash_points import CrashingStreamer
from loadtest.crash_world import PARTITIONS, CrashWorld, wait_until
from loadtest.stream_world import START_MS, StreamWorld, message
from loadtest.topic_reader import read_topic
from streamer.group_progress import FRESH_S, GroupProgress
from train.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

SIZE = SimulationConfig(customers=120, terminals=30, days=50, start=date(2026, 1, 1), seed=8)
SLOW: dict[str, Any] = {"max_batch_rows": 8, "max_in_flight": 1}


@pytest.fixture
def settings(stack: LocalStack, own_valkey: LocalStack) -> Settings:
    return stack.settings().model_copy(update={"valkey_url": own_valkey.addresses.valkey_url})


def drain(world: CrashWorld, streamers: dict[str, CrashingStreamer]) -> None:
    """Let all of them work until everything is stored; none may end."""

    def done() -> bool:
        for name, streamer in streamers.items():
            assert streamer.running, f"{name}: {streamer.tail()}"
        return world.is_stored()

    wait_until(done, 90, "the end of the log")


def test_streamers_of_unequal_speed_agree_with_the_replay(
    settings: Settings, tmp_path: Path
) -> None:
    history = pa.Table.from_batches(simulate(SIZE))
    most = history.slice(0, history.num_rows * 9 // 10)
    with CrashWorld(settings, "several", 0, tmp_path) as world:

        def reach(part: float) -> None:
            wait_until(lambda: len(world.decisions()) > part * history.num_rows, 60, f"{part:.0%}")

        streamers = {"fast": world.start("fast"), "slow": world.start("slow", **SLOW)}
        wait_until(lambda: world.members() == 2, 30, "two members")
        world.feed(most.to_batches())
        reach(0.2)
        streamers["third"] = world.start("third", **SLOW)  # it takes partitions over
        reach(0.5)
        streamers.pop("fast").kill()  # nobody goes on with its partitions until its session ends
        world.feed(history.slice(most.num_rows).to_batches())
        drain(world, streamers)
        for streamer in streamers.values():
            streamer.stop()
        verdict = world.check()
    assert verdict.problems == []
    assert verdict.decisions.decided == history.num_rows


def test_progress_is_the_first_message_that_can_be_read_and_is_not_committed(
    stream_world: StreamWorld,
) -> None:
    settings = stream_world.settings
    bad = b"{not json"
    stream_world.send([bad, message(1), message(2)])  # all in one partition
    (used,) = set(read_topic(settings, settings.transactions_topic).partition.tolist())
    progress = GroupProgress(settings, None)
    try:
        progress.restart({used})
        assert progress.slowest_ms() is None  # ours does not count, the others are empty
        progress.restart({(used + 1) % PARTITIONS})
        assert progress.slowest_ms() == START_MS + 1_000
        stream_world.run_until(lambda _: len(stream_world.decisions()) == 2)
        stream_world.send([bad] * 3)
        time.sleep(2 * FRESH_S)
        assert progress.slowest_ms() is None  # what cannot be read holds nobody back
        stream_world.send([message(3)])
        time.sleep(2 * FRESH_S)
        assert progress.slowest_ms() == START_MS + 3_000
    finally:
        progress.close()
