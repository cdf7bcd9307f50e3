"""`flagger evaluate`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from math import isclose
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from flagger.errors import ConfigurationError
from train.ablation import ablate
from train.alert_times import read_alert_times
from train.ceiling import ceiling
from train.evaluate import TREES, EvaluationPlan, evaluate_file
from train.evaluate_report import Extras, write_evaluation
from train.fit import hyperparameters_from
from train.money import CostMatrix
from train.options import columns_option, data_option, label_delay_option, trees_option
from train.period_measures import MEASURES
from train.prequential import PrequentialPlan
from train.sources import ColumnMap
from train.threshold import PolicyTargets

__all__ = ["evaluate"]

_DAY = click.DateTime(["%Y-%m-%d"])


def _spread(entry: dict[str, Any] | None, digits: int, *, interval: bool = True) -> str:
    if entry is None:
        return "-"
    text = f"{entry['mean']:.{digits}f}"
    if interval and entry["low"] is not None:
        below, above = entry["mean"] - entry["low"], entry["high"] - entry["mean"]
        if isclose(below, above, rel_tol=1e-6, abs_tol=1e-12):
            return f"{text} ± {above:.{digits}f}"
        text += f" ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"
    return text


def _summary(measures: dict[str, Any], out: Path) -> list[Table]:
    periods = measures["periods"]
    days = f"{periods[0]['test_from']} to {periods[-1]['test_to']}"
    count = "One period" if len(periods) == 1 else f"{len(periods)} periods"
    table = Table(title=f"{count}, judged on {days}; report in {out}")
    table.add_column("measure" if len(periods) == 1 else "measure, mean (95 % by t)")
    for name in measures["summary"]:
        table.add_column(name.replace("gradient-boosted ", ""), justify="right")
    for key, words in MEASURES.items():
        digits = 5 if key in ("brier", "calibration_error") else 3
        cells = [  # the intervals of all are in the report: they would not fit
            _spread(found.get(key), digits, interval=name == TREES)
            for name, found in measures["summary"].items()
        ]
        table.add_row(words, *cells)
    saved = Table(title="Reviews saved at equal recall, against rules only")
    for name in ("rules' budget", "recall", "reviews, rules", "reviews, trees", "saved"):
        saved.add_column(name, justify="right")
    for budget, row in measures["reviews_saved"].items():
        saved.add_row(
            f"{float(budget):.1%}",
            f"{row['recall']:.1%}",
            f"{row['reviews_rules']:,.0f}",
            f"{row['reviews_model']:,.0f}",
            _spread(row["saved_share"], 3),
        )
    return [table, saved]


def _ablation_table(ablation: dict[str, Any]) -> Table:
    table = Table(title=f"Ablation over {ablation['periods']} periods")
    for name in ("variant", "features", "ROC AUC", "average precision", "change (95 % by t)"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for row in ablation["variants"]:
        table.add_row(
            row["variant"],
            str(row["columns"]),
            f"{row['roc_auc']:.4f}",
            f"{row['average_precision']:.4f}",
            _spread(row["average_precision_change"], 4),
        )
    return table


def _ceiling_table(periods: list[dict[str, Any]]) -> Table:
    table = Table(title="The best ROC AUC that is possible on data of the Handbook's generator")
    table.add_column("judged from")
    for name in ("frauds", "by chance", "perfect", "measured", "on these", "on others"):
        table.add_column(name, justify="right")
    for row in periods:
        table.add_row(
            row["test_from"],
            f"{row['frauds']:,}",
            f"{row['unforeseeable'] / row['frauds']:.1%}",
            f"{row['perfect_roc_auc']:.3f} ± {row['two_sd']:.3f}",
            f"{row['roc_auc']:.3f}",
            _area(row["on_unforeseeable"]),
            _area(row["on_others"]),
        )
    return table


def _area(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Cannot write to --out {out}: {error.strerror}.") from error


@click.command()
@data_option
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for report.html and evaluation.json.",
)
@columns_option
@click.option("--periods", default=4, show_default=True, help="Test windows, one after the other.")
@click.option("--train-days", default=45, show_default=True, help="Days of a train window.")
@click.option("--test-days", default=7, show_default=True, help="Days of a test window.")
@click.option("--train-from", type=_DAY, help="First day to learn from (UTC).")
@click.option("--test-to", type=_DAY, help="Last day to judge [the last one with mature labels].")
@click.option(
    "--labels-as-of",
    type=_DAY,
    help="Day on which the file's outcomes were known [its last day]; later ones are not judged.",
)
@label_delay_option
@click.option(
    "--known-days",
    type=click.IntRange(1),
    help="Cards are known as compromised by frauds of so many train days [all of them].",
)
@click.option(
    "--alert-budget", default=0.01, show_default=True, help="Share of transactions to flag."
)
@click.option("--review-cost", default=5.0, show_default=True, help="Cost of a review.")
@click.option(
    "--friction-cost", default=30.0, show_default=True, help="Cost of a genuine one declined."
)
@click.option(
    "--monotone", is_flag=True, help="Hold scores to known directions, see docs/model.md."
)
@trees_option
@click.option(
    "--baselines/--no-baselines", default=True, help="Also logistic regression and random forest."
)
@click.option("--ablation", is_flag=True, help="Also leave out each group of features in turn.")
@click.option(
    "--handbook-ceiling",
    is_flag=True,
    help="Also the best ROC AUC that is possible on data of the Handbook's generator.",
)
@click.option(
    "--bench-results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("loadtest/results"),
    show_default=True,
    help="Where `flagger bench` left its results: the report shows the time to an alert from them.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Any number.")
def evaluate(data: Path, out: Path, **options: Any) -> None:
    """Judge the model and the baselines over several periods of a file (prequential).

    Each period has a train window, the label delay, and a test window. The last days of the file,
    whose frauds are not all known yet, are not judged. Writes report.html and evaluation.json.
    """
    _make_folder(out)
    plan = _plan(options)
    times = read_alert_times(options["bench_results"])
    columns_shown = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns_shown, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting", total=1.0)

        def show(text: str, done: float) -> None:
            progress.update(task, completed=done, description=text)

        evaluation = evaluate_file(data, plan, on_progress=show)
        history = evaluation.history
        ablation = ablate(history, plan, on_progress=show) if options["ablation"] else None
    best = ceiling(plan, evaluation) if options["handbook_ceiling"] else None
    write_evaluation(out, evaluation, Extras(ablation, times, best))
    console = Console()
    for table in _summary(evaluation.measures, out):
        console.print(table)
    if ablation:
        console.print(_ablation_table(ablation))
    if best:
        console.print(_ceiling_table(best))
    maturity = evaluation.measures["maturity"]
    console.print(
        f"Labels as of {maturity['labels_as_of']}: {maturity['immature_days']} days after "
        f"{maturity['mature_to']} are not mature and were not judged."
    )
    console.print(f"Best of the baselines: {_best_baseline(evaluation.measures)}")


def _best_baseline(measures: dict[str, Any]) -> str:
    others = {
        name: found["average_precision"]["mean"]
        for name, found in measures["summary"].items()
        if name != TREES
    }
    best = max(others, key=lambda name: others[name])
    return f"{best}, average precision {others[best]:.4f}"


def _plan(options: dict[str, Any]) -> EvaluationPlan:
    def day(name: str) -> Any:
        moment: datetime | None = options[name]
        return None if moment is None else moment.date()

    path: Path | None = options["columns"]
    trees = hyperparameters_from(options["settings"])
    return EvaluationPlan(
        columns=ColumnMap.load(path) if path else ColumnMap(),
        prequential=PrequentialPlan(
            periods=options["periods"],
            train_days=options["train_days"],
            test_days=options["test_days"],
            label_delay_days=options["label_delay_days"],
            test_to=day("test_to"),
            labels_as_of=day("labels_as_of"),
        ),
        train_from=day("train_from"),
        known_days=options["known_days"],
        baselines=options["baselines"],
        targets=PolicyTargets(options["alert_budget"]),
        costs=CostMatrix(options["review_cost"], options["friction_cost"]),
        hyperparameters=replace(trees, monotone=trees.monotone or options["monotone"]),
        seed=options["seed"],
    )
