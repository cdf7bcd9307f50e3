"""The work of `flagger drift check`, apart from the other commands: it brings trees and plots."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from pathlib import Path

import click
import pyarrow as pa
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flagger.drift import WINDOW_ROWS, DriftLimits
from flagger.errors import ConfigurationError
from flagger.models import ModelVersion, live_version, load_version
from flagger.settings import load_settings
from train.drift_check import DriftReport, Injection, check_drift
from train.drift_report import columns_of, write_drift_report
from train.pipeline import make_folder
from train.sources import ColumnMap, read_sorted
from train.split import day_of, start_of_day_ms

__all__ = ["check_file"]

_HISTORY_DAYS = 30
"""Days that only feed the features, where the file does not reach to the version's own days."""
_SHOWN = 12


def check_file(
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
    """Replay a file and print what drifted; the arguments are the options of the command.

    Raises:
        ConfigurationError: The file has too few transactions to judge.
        SystemExit: 1, an alarm was raised.
    """
    settings = load_settings()
    repository = repository or settings.model_repository
    model = load_version(repository, version or live_version(repository))
    limits = DriftLimits(settings.drift_psi_limit, settings.drift_unknown_limit)
    if out is not None:
        make_folder(out)
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
