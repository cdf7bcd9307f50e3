"""A Dask cluster that cannot do the work is refused in one line, before the work."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from distributed import LocalCluster

from flagger.errors import (
    BadMessageError,
    ClusterError,
    ConfigurationError,
    ContractMismatchError,
    DataError,
    FlaggerError,
)
from train import distributed_cluster
from train.cli import train
from train.distributed import train_distributed
from train.distributed_cluster import DaskCluster, connect
from train.pipeline import TrainingPlan
from train.simulate import SimulationConfig, simulate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small file."""
    folder = tmp_path_factory.mktemp("payments")
    batches = simulate(SimulationConfig(customers=100, terminals=5, days=4, seed=1))
    pq.write_table(pa.Table.from_batches(batches), folder / "a.parquet")
    return folder


@pytest.mark.parametrize(
    "error",
    [
        DataError(file="f", problem="p", remedy="r", row=3, value=1.5),
        BadMessageError("is wrong", field="amount"),
        ContractMismatchError(model_hash="a", code_hash="b", source="m"),
        ClusterError("away"),
    ],
)
def test_errors_survive_the_way_from_a_worker(error: FlaggerError) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


@pytest.fixture
def workers() -> Iterator[str]:
    """A running cluster with one worker, a thread of this process."""
    with LocalCluster(
        n_workers=1, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


def test_workers_that_do_not_see_the_data_are_named(workers: str, tmp_path: Path) -> None:
    missing = tmp_path / "elsewhere.parquet"
    cluster = DaskCluster(scheduler=workers)
    with (
        pytest.raises(ConfigurationError, match=r"does not see .*elsewhere\.parquet.*same path"),
        connect(cluster, missing, tmp_path),
    ):
        pass


def test_workers_with_other_code_are_refused(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([("9.9", "other"), ("0.1", "this")])
    monkeypatch.setattr(distributed_cluster, "_code", lambda: next(answers))
    with (
        pytest.raises(ConfigurationError, match=r"runs Fraud Flagger 9\.9 with feature contract"),
        connect(DaskCluster(scheduler=workers), tmp_path, tmp_path),
    ):
        pass


def test_a_worker_error_of_ours_arrives_as_it_is(workers: str, tmp_path: Path) -> None:
    def refuse() -> None:
        raise DataError(file="f", problem="is bad", remedy="Mend it", row=7)

    with connect(DaskCluster(scheduler=workers), tmp_path, tmp_path) as client:
        with pytest.raises(DataError, match="row 7: is bad") as caught:
            client.submit(refuse).result()
        assert caught.value.row == 7


def test_no_workers_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed_cluster, "_WORKERS_S", 0.2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        pytest.raises(ClusterError, match="no worker"),
        connect(DaskCluster(scheduler=cluster.scheduler_address), tmp_path, tmp_path),
    ):
        pass


def test_a_scheduler_that_is_away_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed_cluster, "_ANSWER_S", 0.5)
    cluster = DaskCluster(scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ClusterError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        train_distributed(data, tmp_path / "out", cluster=cluster)
    assert list((tmp_path / "out").iterdir()) == []


def test_dask_that_is_not_installed_is_an_error(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigurationError, match="dependency group `dask`"):
        train_distributed(data, tmp_path)


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (DaskCluster(scheduler="nonsense://x"), "is no address"),
        (DaskCluster(memory_limit="much"), "--dask-memory 'much' is no size"),
    ],
)
def test_bad_settings_of_a_cluster(
    data: Path, tmp_path: Path, cluster: DaskCluster, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        train_distributed(data, tmp_path, cluster=cluster)


def test_too_many_partitions_are_refused(data: Path, tmp_path: Path, workers: str) -> None:
    cluster = DaskCluster(scheduler=workers, partition_rows=1)
    with pytest.raises(ConfigurationError, match=r"at most 256.*--dask-partition-rows"):
        train_distributed(data, tmp_path, cluster=cluster)


def test_a_search_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--search works on one machine"):
        train_distributed(data, tmp_path, TrainingPlan(search_trials=3))


@pytest.mark.parametrize("name", ["payments.csv", "empty"])
def test_other_data_than_parquet_are_refused(tmp_path: Path, name: str) -> None:
    given = tmp_path / name
    if name == "empty":
        given.mkdir()
    arguments: list[Any] = ["--data", given, "--out", tmp_path / "out", "--engine", "dask"]
    result = CliRunner().invoke(train, [str(argument) for argument in arguments])
    assert isinstance(result.exception, DataError)
    assert "neither a .parquet file nor a folder" in str(result.exception)
