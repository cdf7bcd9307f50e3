"""`flagger produce`: send a file's transactions to Kafka."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from flagger.addresses import resolve_settings
from streamer.produce import Pace, ReplayProducer
from streamer.topics import ensure_topics
from train.sources import ColumnMap, read_transactions

__all__ = ["produce"]


def _rate(_context: click.Context, _parameter: click.Parameter, value: str) -> float | None:
    if value == "max":
        return None
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if rate <= 0:
        raise click.BadParameter(f"{value!r} is neither 'max' nor a number above 0")
    return rate


@click.command()
@click.option(
    "--data", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Parquet or CSV file of transactions.",
)  # fmt: skip
@click.option(
    "--columns", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML map from our column names to the file's.",
)  # fmt: skip
@click.option("--rate", default="max", callback=_rate, help="Transactions per second, or max.")
@click.option(
    "--speed-up", type=click.FloatRange(min=0, min_open=True),
    help="Follow the file's own times, so many times faster.",
)  # fmt: skip
@click.option("--labels/--no-labels", default=True, help="Also send labels of the known frauds.")
def produce(
    data: Path, columns: Path | None, rate: float | None, speed_up: float | None, labels: bool
) -> None:
    """Send a file's transactions to Kafka, in the file's order."""
    settings = resolve_settings()
    ensure_topics(settings)
    column_map = ColumnMap.load(columns) if columns else None
    producer = ReplayProducer(settings, with_labels=labels)
    console = Console(stderr=True)
    with Progress(
        TextColumn("sending"), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as progress:
        task = progress.add_task("", total=None)
        producer.run(
            read_transactions(data, column_map),
            Pace(rate, speed_up),
            lambda n: progress.advance(task, n),
        )
    producer.close()
    click.echo(f"{producer.sent:,} transactions and {producer.labels:,} labels are in Kafka")
