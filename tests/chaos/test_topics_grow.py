"""`make chaos`: partitions are added under two streamers, as docs/operations.md says."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from loadtest.crash_world import PARTITIONS, CrashWorld, wait_until
from train.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SIZE = SimulationConfig(customers=400, terminals=120, days=39, start=date(2026, 1, 1), seed=9)
MORE = 2 * PARTITIONS


def test_two_streamers_take_over_the_new_partitions(own_stack: LocalStack, tmp_path: Path) -> None:
    history = pa.Table.from_batches(simulate(SIZE))
    half = history.num_rows // 2
    with CrashWorld(own_stack.settings(), "grow", 0, tmp_path) as world:
        streamers = {name: world.start(name) for name in ("0", "1")}
        wait_until(lambda: world.members() == 2, 30, "two members")
        world.feed(history.slice(0, half).to_batches())
        wait_until(world.is_stored, 60, "an empty log")

        world.grow(MORE, world.settings.decisions_topic, world.settings.alerts_topic)
        world.grow(MORE, world.settings.transactions_topic)
        wait_until(lambda: not any(s.running for s in streamers.values()), 60, "their ends")
        for name, ended in streamers.items():
            assert f"has {MORE} partitions now and had {PARTITIONS}" in ended.tail()
            streamers[name] = world.start(name)
        world.settings = world.settings.model_copy(update={"partitions": MORE})  # to look at
        world.feed(history.slice(half).to_batches())

        def done() -> bool:
            for name, streamer in streamers.items():
                assert streamer.running, f"{name}: {streamer.tail()}"
            return world.is_stored()

        wait_until(done, 90, "the end of the log")
        assert world.members() == 2
        for streamer in streamers.values():
            streamer.stop()
        verdict = world.check()
    assert verdict.problems == []
    assert verdict.decisions.decided == history.num_rows
