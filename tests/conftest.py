"""What tests of several folders share: one embedded stack, and a small model served on it.

Imports that take seconds are inside the fixtures: most tests need none of them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from deploy.local import server
from deploy.local.downloads import kafka_jars, triton_environment
from deploy.local.stack import LocalStack
from flagger.errors import StackError

# Read when XGBoost is loaded. Test workers share the cores: threads that spin while they wait for
# each other take threefold the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

SHIPPED_REPOSITORY = Path(__file__).parents[1] / "model_repository"

_PATIENCE_S = float(os.environ.get("FLAGGER_TEST_PATIENCE_S", "60"))
"""A test has so long to fail by its time limit. One that is stuck in a library's C code, or whose
failure is swallowed, never does, and the whole run would wait for it."""
_STDERR = pytest.StashKey[int]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End this process, with the stacks of all its threads, if a test outlives its time limit."""
    marker = item.get_closest_marker("timeout")
    limit_s = float(marker.args[0] if marker else item.config.getini("timeout"))
    file = item.config.stash[_STDERR]
    faulthandler.dump_traceback_later(limit_s + _PATIENCE_S, file=file, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several workers ports of its own.

    Servers bind theirs some time after they were chosen; within one process none is chosen twice.
    """
    stderr = sys.__stderr__
    assert stderr is not None
    config.stash[_STDERR] = os.dup(stderr.fileno())  # pytest takes it away while a test runs
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    server._PORTS = server._PORTS[worker::workers]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch what the stack needs before the time limit of a test runs."""
    if session.config.option.collectonly:
        return
    if any(item.get_closest_marker("stack") for item in session.items):
        with contextlib.suppress(StackError):  # the fixture says it, in the test that needs it
            kafka_jars()
            triton_environment()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Kafka, Triton and Valkey, one of each for a worker's run, on a copy of the shipped models.

    Tests that use it have topics and keys of their own. `stack.settings()` has the addresses and
    the model repository.
    """
    folder = tmp_path_factory.mktemp("stack")
    repository = folder / "model_repository"
    if SHIPPED_REPOSITORY.is_dir():
        shutil.copytree(SHIPPED_REPOSITORY, repository)
    with LocalStack(folder / "home", model_repository=repository) as running:
        yield running


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[LocalStack]:
    """Servers of one test, which may kill or hang them."""
    repository = tmp_path / "model_repository"
    shutil.copytree(SHIPPED_REPOSITORY, repository)
    with LocalStack(tmp_path / "home", model_repository=repository) as running:
        yield running


@pytest.fixture(scope="session")
def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A Valkey beside the stack's, for tests that empty their database; no two at a time."""
    home = tmp_path_factory.mktemp("valkey")
    with LocalStack(home, services=frozenset({"valkey"})) as running:
        yield running


@pytest.fixture(scope="session")
def small_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `flagger train` leaves, for a small model of simulated payments."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from train.fit import Hyperparameters
    from train.pipeline import TrainingPlan, train_model
    from train.simulate import SimulationConfig, simulate

    folder = tmp_path_factory.mktemp("training")
    size = SimulationConfig(customers=300, terminals=200, days=40, start=date(2026, 1, 1), seed=2)
    data = folder / "transactions.parquet"
    pq.write_table(pa.Table.from_batches(simulate(size)), data)
    plan = TrainingPlan(seed=4, hyperparameters=Hyperparameters(max_trees=30))
    return train_model(data, folder / "out", plan).directory


@pytest.fixture(scope="session")
def published(stack: LocalStack, small_training: Path) -> tuple[Path, str]:
    """Return (repository, version): the small model is live, `stack` serves both its entries."""
    from export.publish import export_model

    repository = stack.model_repository
    version = export_model(
        small_training, repository, triton_url=stack.addresses.triton_url, n_parity_rows=500
    )
    return repository, version
