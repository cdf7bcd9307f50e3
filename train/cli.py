"""`flagger train`."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from train.distributed import train_distributed
from train.distributed_cluster import DaskCluster
from train.fit import hyperparameters_from
from train.money import CostMatrix
from train.options import (
    columns_option,
    data_option,
    engine_options,
    label_delay_option,
    trees_option,
)
from train.pipeline import STEPS, TrainingPlan, TrainingResult, train_model
from train.sources import ColumnMap
from train.threshold import PolicyTargets

__all__ = ["train"]

_STEP_TEXTS = {
    "read": "reading the file",
    "search": "searching hyperparameters",
    "replay": "replaying history through the features",
    "fit": "fitting trees",
    "evaluate": "evaluating",
    "write": "writing the report",
}
_DAY = click.DateTime(["%Y-%m-%d"])


def _day(moment: datetime | None) -> date | None:
    return None if moment is None else moment.date()


def _summary(result: TrainingResult) -> Table:
    table = Table(title=f"Model in {result.directory}")
    table.add_column("measure")
    table.add_column("validation", justify="right")
    table.add_column("test", justify="right")
    parts: list[dict[str, Any]] = [result.metrics["validation"], result.metrics["test"]]
    rows = {
        "transactions": [f"{part['transactions']:,}" for part in parts],
        "frauds": [f"{part['frauds']:,}" for part in parts],
        "ROC AUC": [f"{part['roc_auc']:.4f}" for part in parts],
        "average precision": [f"{part['average_precision']:.4f}" for part in parts],
        "card precision at 100": [
            f"{part['card_precision']['detected_removed']:.3f}" for part in parts
        ],
        "recall at 0.5 % false positives": [
            f"{part['recall_at_fpr']['0.005']:.3f}" for part in parts
        ],
        "calibration error": [f"{part['calibration_error']:.5f}" for part in parts],
    }
    for name in ("flags", "declines"):
        rows[f"{name}: share"] = [f"{part[name]['flagged_share']:.2%}" for part in parts]
        rows[f"{name}: precision / recall"] = [
            f"{part[name]['precision']:.3f} / {part[name]['recall']:.3f}" for part in parts
        ]
    for measure, values in rows.items():
        table.add_row(measure, *values)
    return table


def _costs(review_cost: float | None, friction_cost: float | None) -> CostMatrix | None:
    given = {"review_cost": review_cost, "friction_cost": friction_cost}
    named = {name: value for name, value in given.items() if value is not None}
    return CostMatrix(**named) if named else None


def _run(data: Path, out: Path, plan: TrainingPlan, cluster: DaskCluster | None) -> TrainingResult:
    """Train here, or on a cluster if one is given, with progress shown."""
    columns_shown = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns_shown, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=len(STEPS))
        under_way = ""

        def show(step: str) -> None:
            nonlocal under_way
            under_way = _STEP_TEXTS[step]
            done = STEPS.index(step) if step in STEPS else 1
            progress.update(task, completed=done, description=under_way)

        def show_part(finished: int, parts: int) -> None:
            progress.update(task, description=f"{under_way}: {finished} of {parts} parts")

        def show_trial(finished: int, best: float) -> None:
            text = f"searching: {finished} of {plan.search_trials} trials, best {best:.4f}"
            progress.update(task, description=text)

        if cluster is None:
            return train_model(data, out, plan, on_step=show, on_trial=show_trial)
        return train_distributed(data, out, plan, cluster, on_step=show, on_part=show_part)


@click.command()
@data_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write.",
)
@columns_option
@click.option("--train-from", type=_DAY, help="First day to learn from (UTC; earlier: history).")
@click.option("--train-to", type=_DAY, help="Last day to learn from, included.")
@click.option("--test-from", type=_DAY, help="First day to judge on.")
@click.option("--test-to", type=_DAY, help="Last day to judge on, included.")
@label_delay_option
@click.option("--allow-leakage", is_flag=True, help="Accept a gap shorter than the label delay.")
@click.option(
    "--alert-budget", default=0.01, show_default=True, help="Most transactions to flag, a share."
)
@click.option(
    "--decline-precision", default=0.9, show_default=True, help="Least share of fraud in declines."
)
@click.option(
    "--reviews-per-day",
    type=click.FloatRange(0, min_open=True),
    help="Instead of --alert-budget: most transactions to flag in a day.",
)
@click.option(
    "--review-cost",
    type=click.FloatRange(0),
    help="Choose thresholds by money: cost of a review [5, with --friction-cost only].",
)
@click.option(
    "--friction-cost",
    type=click.FloatRange(0),
    help="The same: cost of a genuine transaction declined [30, with --review-cost only].",
)
@click.option(
    "--search",
    "search_trials",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Search hyperparameters with so many trials; goes on where an earlier search ended.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Any number.")
@trees_option
@engine_options
def train(
    data: Path,
    out: Path,
    columns: Path | None,
    train_from: datetime | None,
    train_to: datetime | None,
    test_from: datetime | None,
    test_to: datetime | None,
    label_delay_days: int,
    allow_leakage: bool,
    alert_budget: float,
    decline_precision: float,
    reviews_per_day: float | None,
    review_cost: float | None,
    friction_cost: float | None,
    search_trials: int,
    seed: int,
    settings: tuple[str, ...],
    engine: str,
    dask_scheduler: str | None,
    dask_workers: int,
    dask_memory: str,
    dask_partition_rows: int,
) -> None:
    """Train a model on a file of transactions and judge it on later days.

    Writes model.json, contract.json, policy.json, metrics.json, scores.parquet, model_card.md and
    plots/ to the folder --out. Days that are not given are chosen from the data: the last 15 % of
    the days are judged, a label delay before them is left out, the first 20 % only feed features.
    The whole file is held in memory and put in the order of its times, except with --engine dask.
    """
    plan = TrainingPlan(
        columns=ColumnMap.load(columns) if columns else ColumnMap(),
        train_from=_day(train_from),
        train_to=_day(train_to),
        test_from=_day(test_from),
        test_to=_day(test_to),
        label_delay_days=label_delay_days,
        allow_leakage=allow_leakage,
        seed=seed,
        hyperparameters=hyperparameters_from(settings),
        targets=PolicyTargets(
            alert_budget, decline_precision, reviews_per_day, _costs(review_cost, friction_cost)
        ),
        search_trials=search_trials,
    )
    cluster = DaskCluster(dask_scheduler, dask_workers, dask_memory, dask_partition_rows)
    result = _run(data, out, plan, cluster if engine == "dask" else None)
    if result.metrics["leakage"]:
        click.echo(
            f"warning: the gap before the test window is {result.metrics['gap_days']} days, "
            f"shorter than the label delay of {label_delay_days}; the measures are too good.",
            err=True,
        )
    Console().print(_summary(result))
