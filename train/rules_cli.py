"""`flagger rules`: check lists and rules, and try them on history before they are in force."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xgboost as xgb
from rich.console import Console
from rich.table import Table

from flagger.errors import ConfigurationError
from flagger.features import FeatureContract
from flagger.models import live_version, load_version, version_folder
from flagger.overrules import Overruler, keys_of
from flagger.policy import DECISIONS
from flagger.rulebook import Condition, load_rulebook
from flagger.settings import load_settings
from train.options import columns_option, data_option
from train.rules_backtest import Backtest, Decide, Tally, approve_all, backtest
from train.sources import ColumnMap, read_sorted
from train.vocabulary import build_vocabularies

__all__ = ["rules"]

file_argument = click.argument(
    "file", required=False, type=click.Path(dir_okay=False, path_type=Path)
)


@click.group()
def rules() -> None:
    """Lists and rules that decide beside the model. FILE: FLAGGER_RULEBOOK if left out."""


@rules.command()
@file_argument
def check(file: Path | None) -> None:
    """Check a file as the doors do. Exit code 3, and what is wrong, if they would refuse it."""
    rulebook = load_rulebook(_file(file))
    Overruler(rulebook)
    table = Table(title=f"Version {rulebook.version}", title_justify="left")
    for name in ("kind", "name", "does", "to"):
        table.add_column(name)
    for one in rulebook.lists:
        table.add_row("list", one.name, one.action, f"{len(one.values):,} x {one.field}")
    for rule in rulebook.rules:
        conditions = [_told(condition) for condition in rule.when]
        table.add_row("rule", rule.name, rule.decision, "\n".join(conditions))
    Console().print(table)


@rules.command("backtest")
@file_argument
@data_option
@columns_option
@click.option(
    "--from",
    "since",
    type=click.DateTime(["%Y-%m-%d"]),
    help="First day to judge (UTC); what came before only feeds the features.",
)
@click.option("--version", help="Model version that decides beside them. Default: the live one.")
@click.option("--without-model", is_flag=True, help="As if everything were approved otherwise.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here too.")
def backtest_command(
    file: Path | None,
    data: Path,
    columns: Path | None,
    since: datetime | None,
    version: str | None,
    without_model: bool,
    out: Path | None,
) -> None:
    """Decide history with and without FILE: what changes, and how right it is where it is known."""
    overruler = Overruler(load_rulebook(_file(file)))
    table = read_sorted(data, ColumnMap.load(columns) if columns else ColumnMap())
    decide, contract = (approve_all, _contract_of(table)) if without_model else _model(version)
    from_ms = 0 if since is None else int(since.replace(tzinfo=UTC).timestamp() * 1000)
    result = backtest(table, overruler, contract, decide, from_ms=from_ms)
    if not result.before.decisions.sum():
        raise ConfigurationError(f"{data} has no transaction from {since} on: choose --from.")
    console = Console()
    for part in _tables(result):
        console.print(part)
    if out is not None:
        out.write_text(json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")


@rules.command()
def key() -> None:
    """Read ids from standard input, one a line, and print their keys for lists with `hashed`.

    The keys are unkeyed XXH64: they keep ids out of sight, not out of reach of somebody who can
    try all ids. Lists of real card numbers do not belong into a file either way.
    """
    ids = [line.strip() for line in sys.stdin if line.strip()]
    for value in keys_of(ids).tolist() if ids else ():
        click.echo(f"{value:016x}")


def _file(file: Path | None) -> Path:
    found = file or load_settings().rulebook
    if found is None:
        raise ConfigurationError("Which file? Name it, or set FLAGGER_RULEBOOK.")
    return found


def _told(condition: Condition) -> str:
    """Return a condition in one line."""
    if condition.field is not None:
        word = "in" if condition.any_of else "not in"
        return f"{condition.field} {word} {', '.join(condition.any_of or condition.none_of or [])}"
    bounds = [] if condition.at_least is None else [f">= {condition.at_least:g}"]
    bounds += [] if condition.below is None else [f"< {condition.below:g}"]
    return f"{condition.feature} {' and '.join(bounds)}"


def _contract_of(table: pa.Table) -> FeatureContract:
    return FeatureContract(build_vocabularies(table, np.ones(table.num_rows, dtype=np.bool_)))


def _model(version: str | None) -> tuple[Decide, FeatureContract]:
    """Return how a published version decides, and its contract."""
    repository = load_settings().model_repository
    model = load_version(repository, version or live_version(repository))
    booster = xgb.Booster()
    booster.load_model(version_folder(repository, model.version) / "xgboost.json")

    def decide(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        scores: npt.NDArray[np.float32] = booster.inplace_predict(rows, missing=np.nan)
        return model.policy.decide(scores)

    return decide, model.contract


def _tables(result: Backtest) -> list[Table]:
    total = int(result.before.decisions.sum())
    title = f"Version {result.version}: {result.changed:,} of {total:,} transactions change"
    decisions = Table(title=title, title_justify="left")
    decisions.add_column("")
    for name in (*DECISIONS, "precision", "recall", "fraud amount caught"):
        decisions.add_column(name, justify="right")
    for name, tally in (("without", result.before), ("with", result.after)):
        decisions.add_row(name, *_cells(tally))
    entries = Table(title="By list and rule", title_justify="left")
    for name in ("name", "holds", "changes", "frauds", "genuine", "precision"):
        entries.add_column(name, justify="left" if name == "name" else "right")
    for entry in result.entries:
        counts = (entry.holds, entry.changes, entry.frauds, entry.genuine)
        entries.add_row(entry.name, *(f"{n:,}" for n in counts), _share(entry.precision))
    return [decisions, entries]


def _cells(tally: Tally) -> list[str]:
    caught = float(tally.fraud_amount[1:].sum())
    counts = [f"{n:,}" for n in tally.decisions.tolist()]
    return [*counts, _share(tally.precision), _share(tally.recall), f"{caught:,.2f}"]


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"
