"""`flagger drift`: is what arrives still what the model was judged on?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from flagger.addresses import resolve_kafka_settings, resolve_settings
from flagger.health import Health, serve_health
from flagger.kafka_access import require_access
from flagger.options import repository_option
from flagger.service import log_to_stderr, metrics_options, until_stopped
from train.labels_metrics import PARTS, LabelsMetrics
from train.labels_watch import LabelsPlan, LabelsWatch
from train.matured import DayOutcome, judge_days, read_decisions, read_labels, total
from train.options import columns_option, data_option
from train.topics import read_values

__all__ = ["drift"]

_OUTCOME_COLUMNS = (
    *("day", "state", "decisions", "flagged", "labels", "frauds", "caught"),
    *("precision", "recall"),
)
_DAY = click.DateTime(["%Y-%m-%d"])


@click.group()
def drift() -> None:
    """Compare what arrives with what the model was judged on."""


@drift.command()
@data_option
@columns_option
@click.option("--version", help="Model version. Default: the live one.")
@repository_option
@click.option(
    "--from",
    "judge_from",
    type=_DAY,
    help="First day to judge (UTC); earlier days feed the features. Default: the day after the "
    "version's test window, or 30 days into the file.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder of reports.")
@click.option(
    "--amount-factor",
    type=click.FloatRange(0, min_open=True),
    help="Drill: all amounts times this.",
)
@click.option(
    "--new-country-share",
    type=click.FloatRange(0, 1),
    help="Drill: this share comes from a new country.",
)
@click.option(
    "--inject-from", type=_DAY, help="Day on which the drill begins. Default: 3 days after --from."
)
def check(**given: Any) -> None:
    """Replay a file and look for drift. Exit code 1 if an alarm was raised."""
    # Trees and plots: 200 MB and a second that `drift watch` does without.
    from train.drift_check_cli import check_file

    check_file(**given)


@drift.command("labels")
@click.option(
    "--maturity-days",
    type=click.IntRange(0),
    default=14,
    show_default=True,
    help="A day is judged once the newest decision is so many days younger.",
)
@click.option("--version", help="Only decisions of this model version. Default: all.")
@click.option("--last-days", type=click.IntRange(1), help="Show so many days. Default: 30.")
def labels_command(maturity_days: int, version: str | None, last_days: int | None) -> None:
    """Judge the decisions by the labels that have come: decisions and labels topics, joined.

    Days that are too young, or that no label has reached, are not judged: no label does not mean
    no fraud.
    """
    settings = resolve_settings()
    decided = read_decisions(read_values(settings, settings.decisions_topic))
    labels = read_labels(read_values(settings, settings.labels_topic))
    outcomes = judge_days(decided, labels, maturity_days, version)
    table = Table(title=f"Decisions by labels, {maturity_days} days mature")
    for heading in _OUTCOME_COLUMNS:
        table.add_column(heading, justify="left" if heading in {"day", "state"} else "right")
    for outcome in outcomes[-(last_days or 30) :]:
        table.add_row(str(outcome.day), outcome.state, *_counts(outcome))
    Console().print(table)
    judged = total(outcomes)
    if not judged.decisions:
        click.echo("no day can be judged yet")
        return
    click.echo(
        f"judged: {judged.decisions:,} decisions, {judged.labelled:,} labels, {judged.frauds:,} "
        f"frauds; precision {judged.precision:.3f}, recall {judged.recall:.3f}"
    )


@drift.command()
@click.option("--maturity-days", type=click.IntRange(1), default=14, show_default=True)
@click.option(
    "--window-days",
    type=click.IntRange(1),
    default=28,
    show_default=True,
    help="So many mature days are judged together.",
)
@click.option(
    "--least-precision",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Alarm below this precision. Default: 0, never.",
)
@click.option(
    "--least-recall",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Alarm below this recall. Default: 0, never.",
)
@click.option(
    "--least-frauds",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="Fewer frauds on the judged days raise no alarm.",
)
@metrics_options(9105)
def watch(metrics_port: int, metrics_host: str, **plan: Any) -> None:
    """Show precision and recall by mature labels as metrics, until Ctrl-C or SIGTERM."""
    log_to_stderr()
    settings = resolve_kafka_settings()
    require_access(settings, AdminClient, KafkaException)
    keep_going = until_stopped()
    metrics = LabelsMetrics()
    health = Health({PARTS[0]: "Kafka has not been asked yet."})
    metrics.show_waiting(health)
    if metrics_port:
        serve_health(health, metrics.registry, metrics_host, metrics_port)
    click.echo(
        f"judging {settings.decisions_topic} by {settings.labels_topic}; stop with Ctrl-C", err=True
    )
    LabelsWatch(settings, LabelsPlan(**plan), metrics, health, keep_going=keep_going).run()


def _counts(outcome: DayOutcome) -> tuple[str, ...]:
    totals = outcome.totals
    counts = (totals.decisions, totals.flagged, totals.labelled)
    found = (totals.frauds, totals.caught)
    if outcome.state != "judged":
        return (*map(str, counts), "", "", "", "")
    return (*map(str, (*counts, *found)), f"{totals.precision:.3f}", f"{totals.recall:.3f}")
