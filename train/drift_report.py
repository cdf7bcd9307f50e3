"""The report of `flagger drift check`: drift.json and a self-contained drift.html."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flagger.drift import NAMES, WATCHED, WINDOW_ROWS, DriftLimits
from flagger.features import CATEGORY_FIELDS
from train.drift_check import DriftReport
from train.page import embedded, new_figure, png, render

__all__ = ["columns_of", "write_drift_report"]

_LINES = 8
"""Most columns in the picture."""


def columns_of(report: DriftReport) -> list[dict[str, Any]]:
    """Return each column's distances, those that raise alarms first, then by PSI."""
    if report.distances is None:
        return []
    largest = np.max(report.psi, axis=0)
    rows = [
        {
            "name": name,
            "psi": float(report.distances.psi[i]),
            "largest": float(largest[i]),
            "ks": float(report.distances.ks[i]),
            "missing": float(report.distances.missing[i]),
            "watched": bool(WATCHED[i]),
        }
        for i, name in enumerate(NAMES)
    ]
    return sorted(rows, key=lambda row: (not row["watched"], -row["psi"]))


def _fields_of(report: DriftReport) -> list[dict[str, Any]]:
    found = report.distances
    if found is None:
        return []
    columns = zip(CATEGORY_FIELDS, found.unknown, found.unknown_before, found.absent, strict=True)
    return [
        {"field": name, "unknown": float(now), "before": float(before), "absent": float(absent)}
        for name, now, before, absent in columns
    ]


def _picture(report: DriftReport, limits: DriftLimits) -> str:
    figure = new_figure(10, 4.5)
    axes = figure.add_subplot()
    psi = np.where(WATCHED, np.array(report.psi), 0.0)
    for column in np.argsort(-psi.max(axis=0))[:_LINES]:
        axes.plot(report.window_ends, psi[:, column], label=NAMES[column], linewidth=1)
    axes.axhline(limits.psi, color="tab:red", linestyle=":", label="alarm")
    if report.injected_at is not None:
        axes.axvline(report.injected_at, color="grey", linestyle=":", label="drift begins")
    axes.set(xlabel="transactions", ylabel="PSI", ylim=(0.0, None))
    axes.legend(fontsize="small")
    return embedded(png(figure, dpi=90))


def write_drift_report(out: Path, report: DriftReport, limits: DriftLimits, data: str) -> None:
    """Write drift.json and drift.html to a folder that exists."""
    columns, fields = columns_of(report), _fields_of(report)
    content = {
        "version": report.version,
        "data": data,
        "transactions": report.judged,
        "windows": len(report.window_ends),
        "alarmed_windows": report.alarmed_windows,
        "first_alarm_at": report.first_alarm_at,
        "first_alarms": [asdict(alarm) for alarm in report.first_alarms],
        "injected_at": report.injected_at,
        "detection_delay": report.detection_delay,
        "limits": asdict(limits),
        "columns": columns,
        "fields": fields,
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    (out / "drift.json").write_text(text + "\n", encoding="utf-8")
    page = render(
        Path(__file__).with_name("drift_report.html"),
        r=report,
        data=data,
        limits=limits,
        window_rows=WINDOW_ROWS,
        rows=columns,
        fields=fields,
        picture=_picture(report, limits) if report.distances is not None else "",
    )
    (out / "drift.html").write_text(page, encoding="utf-8")
