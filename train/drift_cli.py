"""`flagger drift`: is what arrives still what the model was judged on?"""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flagger.addresses import resolve_kafka_settings, resolve_settings
from flagger.drift import WINDOW_ROWS, DriftLimits
from flagger.errors import ConfigurationError
from flagger.health import Health, serve_health
from flagger.kafka_access import require_access
from flagger.models import ModelVersion, live_version, load_version
from flagger.options import repository_option
from flagger.service import log_to_stderr, metrics_options, until_stopped
from flagger.settings import load_settings
from train.drift_check import DriftReport, Injection, check_drift
from train.drift_report import columns_of, write_drift_report
from train.labels_metrics import PARTS, LabelsMetrics
from train.labels_watch import LabelsPlan, LabelsWatch
from train.matured import DayOutcome, judge_days, read_decisions, read_labels, total
from train.options import columns_option, data_option
from train.sources import ColumnMap, read_sorted
from train.split import day_of, start_of_day_ms
from train.topics import read_values

__all__ = ["drift"]

_HISTORY_DAYS = 30
"""Days that only feed the features, where the file does not reach to the version's own days."""
_SHOWN = 12
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
@click.option("--amount-factor", type=float, help="Drill: all amounts times this.")
@click.option(
    "--new-country-share",
    type=click.FloatRange(0, 1),
    help="Drill: this share comes from a new country.",
)
@click.option(
    "--inject-from", type=_DAY, help="Day on which the drill begins. Default: 3 days after --from."
)
def check(
    data: Path,
    columns: Path | None,
    version: str | None,
    repository: Path | None,
    judge_from: datetime | None,
    out: Path | None,
    amount_factor: float | None,
    new_country_share: float | None,
    inject_from: datetime | None,
) -> None:
    """Replay a file and look for drift. Exit code 1 if an alarm was raised."""
    settings = load_settings()
    repository = repository or settings.model_repository
    model = load_version(repository, version or live_version(repository))
    limits = DriftLimits(settings.drift_psi_limit, settings.drift_unknown_limit)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    table = read_sorted(data, ColumnMap.load(columns) if columns else ColumnMap())
    first = judge_from.date() if judge_from else _first_day(table, model)
    injection = None
    if amount_factor is not None or new_country_share is not None:
        day = inject_from.date() if inject_from else first + timedelta(days=3)
        injection = Injection(start_of_day_ms(day), amount_factor or 1.0, new_country_share or 0.0)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("replaying", total=table.num_rows)
        report = check_drift(
            table,
            repository,
            model,
            judge_from_ms=start_of_day_ms(first),
            limits=limits,
            injection=injection,
            on_rows=lambda read: progress.update(task, completed=read),
        )
    if report.distances is None:
        raise ConfigurationError(
            f"{data} has {report.judged:,} transactions from {first} on; drift needs a window of "
            f"{WINDOW_ROWS:,}. Give more data, or an earlier --from."
        )
    _print(report, first)
    if out is not None:
        write_drift_report(out, report, limits, data.name)
        click.echo(f"report: {out / 'drift.html'}")
    if report.first_alarm_at is not None:
        raise SystemExit(1)


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


def _first_day(table: pa.Table, model: ModelVersion) -> date:
    """Return the first day that the version has not been judged on."""
    times = table["event_time"].cast(pa.int64())
    first, last = day_of(times[0].as_py()), day_of(times[-1].as_py())
    test_to = (model.manifest.get("data_window") or {}).get("test_to")
    after = date.fromisoformat(test_to) + timedelta(days=1) if test_to else first
    return after if first < after <= last else first + timedelta(days=_HISTORY_DAYS)


def _print(report: DriftReport, first: date) -> None:
    table = Table(title=f"Drift of version {report.version} from {first} on, last window")
    for heading in ("column", "PSI", "largest", "KS", "missing"):
        table.add_column(heading, justify="left" if heading == "column" else "right")
    for row in columns_of(report)[:_SHOWN]:
        numbers = (f"{row[name]:.3f}" for name in ("psi", "largest", "ks"))
        table.add_row(row["name"], *numbers, f"{row['missing']:.2%}")
    Console().print(table)
    windows = len(report.window_ends)
    if report.first_alarm_at is None:
        click.echo(f"no alarm in {report.judged:,} transactions ({windows:,} windows)")
        return
    names = ", ".join(f"{a.name} {a.value:.3f}" for a in report.first_alarms)
    click.echo(
        f"ALARM after {report.first_alarm_at:,} of {report.judged:,} transactions: {names}; in "
        f"{report.alarmed_windows:,} of {windows:,} windows"
    )
    if report.detection_delay is not None:
        click.echo(f"{report.detection_delay:,} transactions after the drill began")
