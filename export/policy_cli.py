"""`flagger policy`: thresholds of a published version, without training again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from export.tradeoff import budget_threshold, precision_threshold, read_table
from flagger.errors import ConfigurationError
from flagger.models import load_version, version_folder
from flagger.options import repository_option, why_option
from flagger.pointer import read_audit, read_pointer
from flagger.policies import roll_back_policy, set_policy
from flagger.policy import Policy
from flagger.settings import load_settings

__all__ = ["policy"]

_VERSION = click.option("--version", metavar="MODEL", help="Model version. Default: the live one.")
_BY = click.option("--by", metavar="NAME", help="Who decides. Default: the system's user.")

_EXAMPLES = """\b
Examples:
  flagger policy set --review 0.12 --decline 0.8 --why "more analysts from Monday"
  flagger policy set --alerts-per-day 150
  flagger policy rollback
"""


@click.group()
def policy() -> None:
    """Show, set and take back the thresholds that decide."""


@policy.command("set", epilog=_EXAMPLES)
@click.option("--review", type=float, help="Scores from here on go to a person.")
@click.option("--decline", type=float, help="Scores from here on are declined.")
@click.option(
    "--alert-budget",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Instead of --review: most of all transactions to flag (review and decline), a share.",
)
@click.option(
    "--alerts-per-day",
    type=click.FloatRange(0, min_open=True),
    help="Instead of --review: most alerts a day, at the test window's traffic.",
)
@click.option(
    "--decline-precision",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead of --decline: least share of frauds among the declined.",
)
@_VERSION
@repository_option
@why_option
@_BY
def set_command(
    review: float | None,
    decline: float | None,
    alert_budget: float | None,
    alerts_per_day: float | None,
    decline_precision: float | None,
    version: str | None,
    repository: Path | None,
    why: str,
    by: str | None,
) -> None:
    """Put new thresholds in force; streamer and gateway follow without a restart.

    What is not given stays. Budgets and precisions are those of the version's test window.
    """
    if sum(x is not None for x in (review, alert_budget, alerts_per_day)) > 1:
        raise click.UsageError("Give one of --review, --alert-budget and --alerts-per-day.")
    if decline is not None and decline_precision is not None:
        raise click.UsageError("Give one of --decline and --decline-precision.")
    if all(x is None for x in (review, alert_budget, alerts_per_day, decline, decline_precision)):
        raise click.UsageError("Give a threshold or a budget; see --help.")
    repository = repository or load_settings().model_repository
    model = load_version(repository, version or read_pointer(repository).version)
    folder = version_folder(repository, model.version)
    if alerts_per_day is not None:
        alert_budget = _share_of_a_day(alerts_per_day, read_table(folder))
    if alert_budget is not None:
        review = _tell("review", budget_threshold(read_table(folder), alert_budget))
    if decline_precision is not None:
        entry = precision_threshold(read_table(folder), decline_precision)
        if entry is None:
            raise ConfigurationError(
                f"No threshold of the test window has {decline_precision:.1%} frauds above it. "
                f"Give a lower --decline-precision, or --decline."
            )
        decline = _tell("decline", entry)
    if review is None:
        review = model.policy.review_threshold
    if decline is None:
        decline = max(model.policy.decline_threshold, review)
    else:  # by precision it may lie below: who is declined need not be reviewed
        decline = max(decline, review) if decline_precision is not None else decline
    done = set_policy(repository, review, decline, version=model.version, why=why, by=by)
    click.echo(_describe(*done))


@policy.command()
@_VERSION
@repository_option
@why_option
@_BY
def rollback(version: str | None, repository: Path | None, why: str, by: str | None) -> None:
    """Put the thresholds in force that the present ones replaced."""
    repository = repository or load_settings().model_repository
    click.echo(_describe(*roll_back_policy(repository, version=version, why=why, by=by)))


@policy.command()
@_VERSION
@repository_option
def show(version: str | None, repository: Path | None) -> None:
    """Show the thresholds in force and who changed them."""
    repository = repository or load_settings().model_repository
    pointer = read_pointer(repository)
    model = load_version(repository, version or pointer.version)
    click.echo(_describe(model.version, model.policy))
    for record in read_audit(repository):
        if (record.get("to") or {}).get("thresholds_of") == model.version:
            before, after = record["from"], record["to"]
            click.echo(
                f"{record['at']}  {record['by']}: {record['action']}, "
                f"{_thresholds(before)} -> {_thresholds(after)}  {record['why']}"
            )


def _share_of_a_day(alerts: float, table: dict[str, Any]) -> float:
    """Return the share of transactions that are so many alerts a day, below 1.

    Raises:
        ConfigurationError: It would be every transaction.
    """
    a_day = float(table["transactions_per_day"])
    if alerts >= a_day:
        raise ConfigurationError(
            f"--alerts-per-day {alerts:,g} would flag every transaction: the test window has "
            f"{a_day:,.0f} a day. Give fewer, or a share with --alert-budget."
        )
    return alerts / a_day


def _tell(which: str, entry: dict[str, float]) -> float:
    click.echo(
        f"{which} from {entry['threshold']:.6f}: flags {entry['flagged_share']:.3%} of the test "
        f"window, {entry['precision']:.1%} of them frauds, {entry['recall']:.1%} of all frauds"
    )
    return entry["threshold"]


def _describe(version: str, policy: Policy) -> str:
    return (
        f"model version {version}, policy {policy.version}: review from "
        f"{policy.review_threshold:.6f}, decline from {policy.decline_threshold:.6f}"
    )


def _thresholds(told: dict[str, Any]) -> str:
    return (
        f"{told['policy_version']} ({told['review_threshold']:.4f} / "
        f"{told['decline_threshold']:.4f})"
    )
