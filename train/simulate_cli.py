"""`flagger simulate`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flagger.errors import DataError
from train.scenarios import FRAUD_KINDS
from train.simulate import SimulationConfig, simulate_days
from train.sources import SCHEMA

__all__ = ["simulate"]


def _write(out: Path, config: SimulationConfig, on_day: Callable[[], None]) -> list[int]:
    """Write the file and return the number of transactions by fraud kind."""
    counts = np.zeros(len(FRAUD_KINDS), dtype=np.int64)
    out.parent.mkdir(parents=True, exist_ok=True)
    is_csv = out.suffix.lower() == ".csv"
    writer = pa.csv.CSVWriter(out, SCHEMA) if is_csv else pq.ParquetWriter(out, SCHEMA)
    with writer:
        for batch, rows in simulate_days(config):
            writer.write_batch(batch)
            counts += np.bincount(rows.kind, minlength=len(FRAUD_KINDS))
            on_day()
    found: list[int] = counts.tolist()
    return found


def _summary(out: Path, counts: list[int]) -> Table:
    total = sum(counts)
    table = Table(title=f"{total:,} transactions in {out}")
    table.add_column("kind")
    table.add_column("transactions", justify="right")
    table.add_column("share", justify="right")
    for kind, count in zip(FRAUD_KINDS, counts, strict=True):
        table.add_row(kind.replace("_", " "), f"{count:,}", f"{count / max(total, 1):.3%}")
    return table


@click.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write, .parquet or .csv.",
)
@click.option("--customers", default=5_000, show_default=True, help="Each pays about twice a day.")
@click.option("--terminals", default=10_000, show_default=True, help="A quarter are web shops.")
@click.option("--days", default=100, show_default=True)
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    default="2026-01-01",
    show_default=True,
    help="First day, UTC.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed, the same file.")
def simulate(
    out: Path, customers: int, terminals: int, days: int, start: datetime, seed: int
) -> None:
    """Write a file of simulated transactions, some of them fraud, in event-time order."""
    if out.suffix.lower() not in (".parquet", ".csv"):
        raise click.BadParameter("the name must end in .parquet or .csv", param_hint="--out")
    config = SimulationConfig(customers, terminals, days, start.date(), seed)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("simulating days", total=days)
        try:
            counts = _write(out, config, lambda: progress.advance(task))
        except OSError as error:
            raise DataError(
                file=str(out), problem=f"cannot be written ({error})", remedy="Choose another --out"
            ) from error
    Console().print(_summary(out, counts))
