"""`flagger retrain`: a candidate from what has happened since, compared with the live version."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import click
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from flagger.addresses import resolve_settings
from flagger.errors import ConfigurationError
from flagger.models import live_version, load_version
from flagger.options import repository_option
from flagger.settings import Settings, load_settings
from train.history import history_of
from train.matured import read_labels
from train.pipeline import make_folder
from train.retrain import Retrained, plan_like, retrain
from train.topics import read_values

__all__ = ["retrain_command"]

_HISTORY_FILE = "history.parquet"


@click.command("retrain")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder to write.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Parquet or CSV with outcomes. Default: the topics transactions and labels.",
)
@repository_option
@click.option(
    "--maturity-days",
    type=click.IntRange(0),
    default=14,
    show_default=True,
    help="From the topics: a day's unlabelled transactions are genuine once it is so old and has "
    "labels; else their outcome is not known.",
)
@click.option(
    "--search",
    "search_trials",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Search hyperparameters with so many trials; 0: the live version's.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Any number.")
@click.option("--keep-history", is_flag=True, help="Keep history.parquet: it has customer ids.")
def retrain_command(
    out: Path,
    data: Path | None,
    repository: Path | None,
    maturity_days: int,
    search_trials: int,
    seed: int,
    keep_history: bool,
) -> None:
    """Train a candidate by the live version's recipe, and judge both on its latest mature days.

    Nothing is exported or published: the next commands are printed.
    """
    settings = load_settings()
    repository = repository or settings.model_repository
    live = load_version(repository, live_version(repository))
    make_folder(out)
    history, test_to = out / _HISTORY_FILE, None
    shown = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    try:
        if data is None:
            test_to = _write_history(resolve_settings(), history, maturity_days)
        plan = plan_like(repository, live, test_to=test_to, seed=seed, search_trials=search_trials)
        with Progress(*shown, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("starting", total=None)

            def show(step: str) -> None:
                progress.update(task, description=step)

            def show_trial(finished: int, best: float) -> None:
                progress.update(task, description=f"search: {finished}, best {best:.4f}")

            found = retrain(
                data or history, out, plan, repository, live, on_step=show, on_trial=show_trial
            )
    finally:
        if data is None and not keep_history:
            history.unlink(missing_ok=True)
    _print(found, live.version, out)


def _write_history(settings: Settings, path: Path, maturity_days: int) -> date:
    """Write what the topics hold; return the last day that can be judged."""
    labels = read_labels(read_values(settings, settings.labels_topic))
    pieces = read_values(settings, settings.transactions_topic)
    history = history_of(pieces, labels, maturity_days)
    if not history.table.num_rows or not labels:
        raise ConfigurationError(
            f"The topics have {history.table.num_rows:,} transactions in JSON, "
            f"{history.unreadable:,} other messages and {len(labels):,} labels: there is nothing "
            f"to learn from. Avro and Protobuf are not read here: retrain from a file with --data."
        )
    pq.write_table(history.table, path)
    known = history.table.num_rows - history.table["is_fraud"].null_count
    click.echo(
        f"{history.table.num_rows:,} transactions, {known:,} with a known outcome, {len(labels):,} "
        f"labels; mature to {history.mature_to}, {history.days_without_labels} older days without "
        f"any label are left out; {history.repeats:,} repeats, {history.unreadable:,} unreadable"
    )
    return history.mature_to


def _print(found: Retrained, live: str, out: Path) -> None:
    windows = found.result.windows
    table = Table(title=f"Judged on {windows.test_from} to {windows.test_to}")
    for heading in ("measure", f"live: version {live}", "candidate"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for words, old, new in found.rows():
        digits = 2 if "money" in words else 4
        table.add_row(words, f"{old:,.{digits}f}", f"{new:,.{digits}f}")
    Console().print(table)
    if found.live_has_seen:
        click.echo(
            f"warning: version {live} learned from days of this test window; its figures are too "
            f"good. Retrain once there are later days with mature labels.",
            err=True,
        )
    click.echo(
        f"nothing is published. Next:\n"
        f"  flagger export {out} --candidate      # prove it and have Triton load it\n"
        f"  flagger models shadow VERSION         # see it score live traffic\n"
        f"  flagger models canary VERSION         # let it decide a share of the customers\n"
        f"  flagger models publish VERSION"
    )
