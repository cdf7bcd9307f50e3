"""Triton, Valkey and the broker are killed while a streamer works: nothing lost, nothing twice."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld
from train.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

SHIPPED_REPOSITORY = Path(__file__).parents[2] / "model_repository"
SIZE = SimulationConfig(customers=200, terminals=120, days=36, start=date(2026, 1, 1), seed=6)
RATE_PER_S = 1_500.0
numbers = itertools.count(1)


@pytest.fixture(scope="module")
def history() -> pa.Table:
    return pa.Table.from_batches(simulate(SIZE))


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    folder = tmp_path_factory.mktemp("own")
    repository = folder / "model_repository"
    shutil.copytree(SHIPPED_REPOSITORY, repository)
    with LocalStack(folder / "home", model_repository=repository) as running:
        yield running


@pytest.fixture(scope="module")
def services(own_stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    with Services(own_stack, tmp_path_factory.mktemp("again")) as made:
        yield made


@pytest.fixture
def world(own_stack: LocalStack, tmp_path: Path) -> Iterator[CrashWorld]:
    number = next(numbers)
    with CrashWorld(own_stack.settings(), f"server-{number}", number, tmp_path) as made:
        yield made


def test_killed_servers_come_back(world: CrashWorld, services: Services, history: pa.Table) -> None:
    world.start_feeding(history.to_batches(), RATE_PER_S)
    streamer = world.start()
    for name in ("triton", "kafka", "valkey"):
        services.restart(name, away_s=0.5)
        streamer = world.supervise(streamer)
    world.finish_feeding()
    world.drain(streamer).stop()
    verdict = world.check()
    assert verdict.problems == []
    assert verdict.decisions.decided == history.num_rows


@pytest.mark.chaos  # tests/streamer/test_state_takeover.py shows the same in a second
def test_a_store_that_lost_its_data_is_filled_again(
    world: CrashWorld, services: Services, history: pa.Table
) -> None:
    most, few = history.slice(0, history.num_rows // 2), history.slice(history.num_rows // 2, 20)
    world.feed(most.to_batches())
    streamer = world.drain(world.start())
    services.restart("valkey", away_s=0)  # it comes back empty
    world.feed(few.to_batches())
    streamer = world.drain(streamer)
    assert world.check().problems == []
    streamer.kill()
    world.feed(history.slice(most.num_rows + 20).to_batches())
    world.drain(world.start()).stop()
    assert world.check().problems == []
