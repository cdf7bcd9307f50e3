"""`make chaos`: Triton hangs longer than some limits last; the streamer waits and stays right."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld, wait_until
from train.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

SIZE = SimulationConfig(customers=400, terminals=120, days=39, start=date(2026, 1, 1), seed=7)


@pytest.mark.parametrize(
    "seconds",
    [
        18,  # longer than a partition may be quiet before it counts as finished
        75,  # longer than a Kafka transaction may stay open
    ],
)
def test_triton_hangs_while_history_is_read(
    own_stack: LocalStack, tmp_path: Path, seconds: float
) -> None:
    settings = own_stack.settings().model_copy(update={"max_batch_rows": 256})
    history = pa.Table.from_batches(simulate(SIZE))
    with (
        Services(own_stack, tmp_path) as services,
        CrashWorld(settings, "hang", 0, tmp_path) as world,
    ):
        world.feed(history.to_batches())
        streamer = world.start()
        wait_until(lambda: len(world.decisions()) > 1_000, 30, "a first thousand decisions")
        services.pause("triton", seconds)
        assert world.drain(streamer) is streamer, streamer.tail()
        streamer.stop()
        assert world.check().problems == []
