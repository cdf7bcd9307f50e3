"""A Dask cluster for training: one that runs, or worker processes on this machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagger import __version__
from flagger.errors import ClusterError, ConfigurationError
from flagger.features import CATEGORY_FIELDS, FeatureContract

__all__ = ["DaskCluster", "connect", "worker_addresses"]

_ANSWER_S = 10
"""How long the scheduler may take to answer."""
_WORKERS_S = 60
"""How long the workers of this machine may take to start."""
_MARKER = "visible"


@dataclass(frozen=True)
class DaskCluster:
    """Where distributed training runs.

    Attributes:
        scheduler: Address of a running scheduler, `tcp://host:8786` or `tls://host:8786`; None:
            start workers on this machine, and end them afterwards.
        workers: How many, if they are started here.
        memory_limit: What each may take if they are started here: `4 GiB`; `auto`: an equal part
            of this machine's memory.
        partition_rows: Transactions of one partition of the customers. A worker holds one more
            partition than it keeps rows of, about 500 bytes a transaction.
    """

    scheduler: str | None = None
    workers: int = 2
    memory_limit: str = "auto"
    partition_rows: int = 1_000_000


@contextmanager
def connect(cluster: DaskCluster, data: Path, scratch: Path) -> Iterator[Any]:
    """Yield a client (`distributed.Client`) of workers that can do the work.

    Args:
        cluster: Which cluster.
        data: What the workers are to read.
        scratch: Existing folder that they are to share; spilled memory goes there, too.

    Raises:
        ConfigurationError: Dask is not installed; an address or a size is none; workers run other
            code, or do not see both paths.
        ClusterError: The scheduler does not answer, or has no workers; or workers were lost while
            the client was in use.
    """
    try:
        import distributed
    except ImportError as error:
        raise ConfigurationError(
            "--engine dask needs Dask: install the dependency group `dask`."
        ) from error
    with ExitStack() as stack:
        address = cluster.scheduler or stack.enter_context(_local(cluster, scratch))
        try:
            client = stack.enter_context(distributed.Client(address, timeout=_ANSWER_S))
        except ValueError as error:
            raise ConfigurationError(
                f"--dask-scheduler {cluster.scheduler} is no address ({error}); write for example "
                f"tcp://scheduler:8786."
            ) from error
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"No Dask scheduler answers at {cluster.scheduler} within {_ANSWER_S} s. Is the "
                f"address right, and is the scheduler up?"
            ) from error
        _require_workers(client, data, scratch)
        try:
            yield client
        except distributed.scheduler.KilledWorker as error:
            raise ClusterError(
                f"Dask gave a task up, because workers died while running it ({error}). Mostly "
                f"they had too little memory: give each more, or use more and smaller partitions "
                f"(--dask-memory, --dask-partition-rows)."
            ) from error
        except (distributed.client.FutureCancelledError, distributed.comm.CommClosedError) as error:
            raise ClusterError(
                f"The Dask cluster was lost during the work ({error}). Nothing was written to "
                f"--out; start the command again."
            ) from error


@contextmanager
def _local(cluster: DaskCluster, scratch: Path) -> Iterator[str]:
    """Run workers on this machine; yield the scheduler's address."""
    from dask.utils import parse_bytes
    from distributed import LocalCluster

    try:
        limit = cluster.memory_limit
        memory = limit if limit == "auto" else parse_bytes(limit)
    except ValueError as error:
        raise ConfigurationError(
            f"--dask-memory {cluster.memory_limit!r} is no size; write for example '4 GiB' or auto."
        ) from error
    with LocalCluster(
        n_workers=cluster.workers,
        threads_per_worker=1,  # XGBoost and the feature kernels run one task at a time well
        memory_limit=memory,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",  # the default port may be another cluster's
        silence_logs=logging.ERROR,
        local_directory=str(scratch / "spill"),
    ) as local:
        yield local.scheduler_address


def worker_addresses(client: Any) -> list[str]:
    """Return the addresses of all workers, in a fixed order."""
    return sorted(client.scheduler_info(n_workers=-1)["workers"])


def _code() -> tuple[str, str]:
    """Return release and feature contract of the code that runs here."""
    blank: dict[str, tuple[str, ...]] = dict.fromkeys(CATEGORY_FIELDS, ())
    return __version__, FeatureContract(blank, 0).hash


def _facts_of_worker(data: str, marker: str) -> tuple[tuple[str, str], bool, bool]:
    """Run by each worker: what code it has, and which of the paths it sees."""
    return _code(), Path(data).exists(), Path(marker).exists()


def _require_workers(client: Any, data: Path, scratch: Path) -> None:
    """Raise unless there are workers, all with our code and our files."""
    try:
        client.wait_for_workers(1, timeout=_WORKERS_S)
    except TimeoutError as error:
        raise ClusterError(
            f"The Dask scheduler at {client.scheduler.address} has had no worker for "
            f"{_WORKERS_S} s. Start some: `dask worker {client.scheduler.address}`."
        ) from error
    marker = scratch / _MARKER
    marker.touch()
    try:
        found = client.run(_facts_of_worker, str(data), str(marker))
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"The Dask workers cannot load Fraud Flagger {__version__} ({error}); start them in an "
            f"environment where it is installed with the dependency group `dask`."
        ) from error
    ours = _code()
    for worker, (theirs, sees_data, sees_scratch) in found.items():
        if theirs != ours:
            raise ConfigurationError(
                f"Dask worker {worker} runs Fraud Flagger {theirs[0]} with feature contract "
                f"{theirs[1]}, this is {ours[0]} with {ours[1]}; their rows would differ. Use one "
                f"release."
            )
        if not (sees_data and sees_scratch):
            missing = scratch if sees_data else data
            raise ConfigurationError(
                f"Dask worker {worker} does not see {missing}. --data and --out must lie on "
                f"storage that all workers mount at the same path."
            )
