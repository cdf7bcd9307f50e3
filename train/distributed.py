"""`flagger train --engine dask`: training on more transactions than one machine's memory holds.

    files -> shuffle by customer -> share terminals' activity -> rows -> XGBoost on all workers

The plan, the rows, early stopping and what is written are those of `train_model`. The trees differ
as with another seed: each worker samples its own rows, and the bins of values are merged sketches.
The driver holds what measures need of validation and test (ids, times, outcomes and scores: about
150 bytes a transaction), never rows.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import xgboost as xgb

from flagger.errors import ConfigurationError
from flagger.features import CATEGORY_FIELDS, FeatureContract
from flagger.state.records import DAY_MS
from train.distributed_cluster import DaskCluster, connect, worker_addresses
from train.distributed_fit import (
    OnPart,
    count_duplicates,
    fit_on_workers,
    gather_outcomes,
    picked,
    scored,
    to_booster,
    wait,
)
from train.distributed_replay import replay_partition, share_activity
from train.distributed_shuffle import PLACE, Summary, plan_pieces, shuffle_piece
from train.judge import (
    NAMED_COLUMNS,
    Fitted,
    Judged,
    TrainingPlan,
    TrainingResult,
    judge_and_write,
    sample_places,
)
from train.pipeline import fix_windows, make_folder
from train.rows import require_both_outcomes
from train.split import Windows, start_of_day_ms
from train.vocabulary import order_values

__all__ = ["MOST_PARTITIONS", "train_distributed"]

MOST_PARTITIONS = 256
"""A shuffling task has one file open for each."""
_SCRATCH = ".dask"


def train_distributed(
    data: Path,
    out: Path,
    plan: TrainingPlan | None = None,
    cluster: DaskCluster | None = None,
    *,
    on_step: Callable[[str], None] = lambda _: None,
    on_part: OnPart = lambda _finished, _all: None,
) -> TrainingResult:
    """Train on a Dask cluster, judge on later days and write what `train_model` writes.

    Args:
        data: A Parquet file or a folder of them; all workers must see it at the same path.
        out: Folder to write to, shared likewise. Partitions lie in its folder `.dask` meanwhile.
        plan: Windows, seed and settings; None: the defaults. A search is refused.
        cluster: Where to run; None: two workers on this machine.
        on_step: Called with each of `train.pipeline.STEPS` when it begins.
        on_part: Called during `read` and `replay`.

    Raises:
        DataError: A file cannot be used, or a window lacks fraud or genuine transactions.
        ConfigurationError: Windows that do not fit, a leak, or a cluster that cannot do the work.
        ClusterError: The cluster is away or lost its workers.
    """
    plan, cluster = plan or TrainingPlan(), cluster or DaskCluster()
    if plan.search_trials:
        raise ConfigurationError(
            "--search works on one machine only: search on some months of the data without "
            "--engine dask, and give with --set what its metrics.json then names (hyperparameters)."
        )
    data, out = data.resolve(), out.resolve()
    make_folder(out)
    on_step("read")
    pieces, rows = plan_pieces(data, cluster.partition_rows)
    with _scratch(out) as scratch, connect(cluster, data, scratch) as client:
        workers = len(worker_addresses(client))
        partitions = _partitions(rows, cluster, workers)
        shuffling = [
            client.submit(shuffle_piece, piece, plan.columns, partitions, scratch, pure=False)
            for piece in pieces
        ]
        wait(shuffling, on_part)
        summary = Summary.merge(client.gather(shuffling))
        windows = fix_windows(
            data, plan, (summary.first_ms, summary.last_ms), summary.rows - summary.unlabelled
        )
        contract = FeatureContract(_vocabularies(summary, windows), plan.label_delay_days)
        on_step("replay")
        parts = _replay(client, partitions, contract, windows, scratch, on_part)
        outcomes = gather_outcomes(client, parts)
        for name, found in outcomes.items():
            require_both_outcomes(name, np.concatenate(found), data)
        on_step("fit")
        booster = fit_on_workers(client, parts, outcomes, plan.hyperparameters, plan.seed)
        on_step("evaluate")
        validation, _ = _judge(client, parts, "validation", booster)
        test, sample = _judge(client, parts, "test", booster)
        duplicates = count_duplicates(client, parts)
    facts = {
        "engine": {"name": "dask", "workers": workers, "partitions": partitions},
        "data": _describe(summary, data, duplicates),
        "fit": {
            "transactions": sum(len(part) for part in outcomes["fit"]),
            "frauds": int(sum(part.sum() for part in outcomes["fit"])),
        },
    }
    fitted = Fitted(booster, contract, windows, plan.hyperparameters, facts)
    return judge_and_write(out, plan, fitted, (validation, test), sample, on_step=on_step)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """Make the folder that the workers share; what is in it are transactions, so it goes again."""
    scratch = out / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _partitions(rows: int, cluster: DaskCluster, workers: int) -> int:
    partitions = max(workers, -(-rows // cluster.partition_rows))
    if partitions > MOST_PARTITIONS:
        raise ConfigurationError(
            f"{rows:,} transactions in partitions of {cluster.partition_rows:,} are {partitions} "
            f"partitions on {workers} workers; at most {MOST_PARTITIONS} work. Give a larger "
            f"--dask-partition-rows, and workers enough memory for it."
        )
    return partitions


def _vocabularies(summary: Summary, windows: Windows) -> dict[str, tuple[str, ...]]:
    """Return what `build_vocabularies` returns, from counts by day."""
    first = start_of_day_ms(windows.train_from) // DAY_MS
    last = start_of_day_ms(windows.validation_from) // DAY_MS - 1
    outcomes = summary.outcomes.loc[first:last]
    prior = float(outcomes["sum"].sum() / max(int(outcomes["size"].sum()), 1))
    vocabularies = {}
    for name in CATEGORY_FIELDS:
        counts: pd.DataFrame = summary.categories[name]
        days = counts.index.get_level_values("day")
        chosen = counts[(days >= first) & (days <= last)]
        vocabularies[name] = order_values(chosen.groupby(level=1).sum(), prior)
    return vocabularies


def _replay(
    client: Any,
    partitions: int,
    contract: FeatureContract,
    windows: Windows,
    scratch: Path,
    on_part: OnPart,
) -> list[Any]:
    """Return futures of each partition's `PartitionRows`, spread over the workers' memory."""

    def show(offset: int) -> OnPart:
        return lambda finished, _: on_part(offset + finished, 2 * partitions)

    numbers = range(partitions)
    sharing = [client.submit(share_activity, n, contract, scratch, pure=False) for n in numbers]
    wait(sharing, show(0))
    addresses = worker_addresses(client)
    replaying = [
        client.submit(
            replay_partition,
            number,
            contract,
            windows,
            scratch,
            workers=[addresses[number % len(addresses)]],
            allow_other_workers=True,
            pure=False,
        )
        for number in numbers
    ]
    wait(replaying, show(partitions))
    return replaying


def _judge(
    client: Any, parts: Sequence[Any], window: str, booster: xgb.Booster
) -> tuple[Judged, npt.NDArray[np.float32]]:
    """Return a window's transactions with scores, and its feature rows at `sample_places`."""
    held = client.submit(to_booster, bytes(booster.save_raw("ubj")), pure=False)  # sent once
    scoring = [client.submit(scored, part, window, held, pure=False) for part in parts]
    table = pa.concat_tables(client.gather(scoring))
    times = table["event_time"].cast(pa.int64()).to_numpy()
    table = table.take(np.lexsort((table[PLACE].to_numpy(), times)))
    wanted = table[PLACE].to_numpy()[sample_places(table.num_rows)]
    picks = client.gather(client.map(picked, parts, window=window, places=wanted, pure=False))
    found = np.concatenate([places for places, _ in picks])
    rows = np.concatenate([rows for _, rows in picks])
    order = np.argsort(found)
    sample = rows[order[np.searchsorted(found, wanted, sorter=order)]]
    judged = Judged(
        table["score"].to_numpy(), table["amount"].to_numpy(), table.select(list(NAMED_COLUMNS))
    )
    return judged, sample


def _describe(summary: Summary, data: Path, duplicates: int) -> dict[str, Any]:
    def moment(time_ms: int) -> str:
        text: str = pa.scalar(time_ms, pa.timestamp("ms", "UTC")).as_py().isoformat()
        return text

    return {
        "file": data.name,
        "transactions": summary.rows,
        "frauds": summary.frauds,
        "unlabelled": summary.unlabelled,
        "duplicates": duplicates,
        "first_event_time": moment(summary.first_ms),
        "last_event_time": moment(summary.last_ms),
    }
