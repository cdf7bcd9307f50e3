"""`flagger demo`: the main job, end to end, with its own checks."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from loadtest.demo import DemoPlan, run_demo
from loadtest.demo_report import summarise, summary_table, write_report
from train.sources import ColumnMap

__all__ = ["demo"]


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Parquet or CSV file with is_fraud. Default: simulate one.",
)
@click.option(
    "--columns",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML map from our column names to the file's.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run. Default: runs/<time>.",
)
@click.option(
    "--live",
    default=DemoPlan.live,
    show_default=True,
    type=click.IntRange(min=1_000),
    help="Transactions at the end that are sent at --rate.",
)
@click.option(
    "--rate",
    default=DemoPlan.live_rate_per_s,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Transactions per second of that part.",
)
def demo(data: Path | None, columns: Path | None, out: Path | None, live: int, rate: float) -> None:
    """Train, export, start Kafka, Triton and Valkey, stream everything, and check what came out.

    Ends with status 1 if a transaction is lost or decided twice, or if a feature row or a score
    differs from the offline replay. Writes summary.json and report.html.
    """
    plan = DemoPlan(
        out=out or Path("runs") / datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
        data=data,
        columns=ColumnMap.load(columns) if columns else ColumnMap(),
        live=live,
        live_rate_per_s=rate,
    )
    console = Console()
    with console.status("starting") as status:

        def on_step(name: str) -> None:
            console.log(name)
            status.update(name)

        result = run_demo(plan, on_step)
    summary = summarise(result)
    report = write_report(result, summary)
    console.print(summary_table(summary))
    console.print(f"report: {report}")
    for failure in summary["failures"]:
        console.print(f"[red]failed:[/red] {failure}")
    if summary["failures"]:
        sys.exit(1)
    console.print("[green]all checks held[/green]")
