"""What a demo run says: a table for the terminal, summary.json, and report.html with plots."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from loadtest.demo import DemoResult
from train.page import embedded, new_figure, png, render

__all__ = ["failures", "summarise", "summary_table", "write_report"]

_LATENCY_TARGET_MS = 100.0
_TEMPLATE = Path(__file__).parent / "templates" / "demo.html"
_DPI = 110


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    points = np.percentile(np.array(values), [50, 95, 99])
    return {f"p{p}": round(float(v), 2) for p, v in zip((50, 95, 99), points, strict=True)}


def failures(result: DemoResult) -> list[str]:
    """Return in words what did not hold; empty: all is well."""
    verdict = result.verdict
    found = [f"{name}: {getattr(verdict, name):,}" for name in verdict.failures]
    if verdict.decided != result.sent:
        found.append(f"{result.sent:,} sent, {verdict.decided:,} decided")
    refused = [a for a in result.answers if a.status != 200]
    if refused:
        found.append(
            f"{len(refused)} gateway requests failed, first: {refused[0].status} "
            f"{refused[0].decision}"
        )
    return found + verdict.details


def summarise(result: DemoResult) -> dict[str, Any]:
    """Return the run's figures, as written to summary.json."""
    verdict, measures = result.verdict, result.measures
    card = measures.get("card_precision", {})
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "cpu": platform.processor() or platform.machine()},
        "data": result.plan.data.name if result.plan.data else "simulated",
        "in": result.sent,
        "decided": verdict.decided,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "dead_lettered": result.dead_letters,
        "alerts": result.alerts,
        "transactions_per_s": round(result.transactions_per_s),
        "event_to_decision_ms": _percentiles(result.live_latencies_ms),
        "live_rate_per_s": result.plan.live_rate_per_s,
        "gateway_ms": _percentiles([a.latency_ms for a in result.answers]),
        "gateway_requests": len(result.answers),
        "gateway_retries": sum(a.attempts - 1 for a in result.answers),
        "different_features": verdict.different_features,
        "largest_score_difference": verdict.largest_score_difference,
        "model": {
            "accuracy": measures.get("accuracy"),
            "roc_auc": measures.get("roc_auc"),
            "average_precision": measures.get("average_precision"),
            "precision_of_flags": measures.get("flags", {}).get("precision"),
            "recall_of_flags": measures.get("flags", {}).get("recall"),
            f"card_precision_at_{card.get('k', 100)}": card.get("detected_removed"),
            "test_transactions": measures.get("transactions"),
        },
        "seconds": {name: round(value, 1) for name, value in result.seconds.items()},
        "failures": failures(result),
    }


def summary_table(summary: dict[str, Any]) -> Table:
    """Return the figures as a table for the terminal."""
    table = Table(title="Fraud Flagger demo", show_header=False, title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("note", style="dim")

    def row(name: str, value: Any, note: str = "") -> None:
        if isinstance(value, float):
            value = f"{value:.4f}"
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value), note)

    for name in ("in", "decided", "lost", "doubled", "dead_lettered", "alerts"):
        row(name.replace("_", "-"), summary[name])
    row("tx/s", summary["transactions_per_s"], "first part, producer and all services on this box")
    rate = f"at {summary['live_rate_per_s']:,.0f} tx/s, read committed"
    for title, key, note in (
        ("event to decision", "event_to_decision_ms", rate),
        (
            "gateway",
            "gateway_ms",
            f"{summary['gateway_requests']} requests, {summary['gateway_retries']} retries",
        ),
    ):
        table.add_section()
        for point, value in summary[key].items():
            row(f"{title} {point}", f"{value:.1f} ms", note)
    table.add_section()
    for name, value in summary["model"].items():
        row(name.replace("_", " "), value, "streamed decisions of the test window")
    table.add_section()
    row("rows unlike offline", summary["different_features"], "feature rows, bit for bit")
    row("score difference", f"{summary['largest_score_difference']:.1e}", "largest; 1e-5 allowed")
    return table


def _latency_plot(result: DemoResult) -> str:
    figure = new_figure(6.4, 3.2)
    axes = figure.add_subplot()
    gateway = [a.latency_ms for a in result.answers]
    for values, name in ((result.live_latencies_ms, "event to decision"), (gateway, "gateway")):
        if values:
            ordered = np.sort(np.array(values))
            axes.plot(ordered, np.linspace(0, 100, len(ordered)), label=name)
    axes.axvline(_LATENCY_TARGET_MS, color="crimson", linestyle="--", label="target")
    axes.set(xlabel="ms", ylabel="% at or below", xlim=(0, 2 * _LATENCY_TARGET_MS))
    axes.grid(alpha=0.3)
    axes.legend()
    return embedded(png(figure, dpi=_DPI))


def _throughput_plot(result: DemoResult) -> str:
    figure = new_figure(6.4, 3.2)
    axes = figure.add_subplot()
    times = np.array([moment for moment, _ in result.history])
    counts = np.array([count for _, count in result.history])
    axes.plot(times - times[0], counts, marker=".")
    axes.set(xlabel="seconds", ylabel="decisions")
    axes.grid(alpha=0.3)
    return embedded(png(figure, dpi=_DPI))


def _score_plot(result: DemoResult) -> str:
    figure = new_figure(6.4, 3.2)
    axes = figure.add_subplot()
    for name, color in (("approve", "seagreen"), ("review", "orange"), ("decline", "crimson")):
        scores = [d.score for d in result.decisions if d.decision == name and d.score is not None]
        if scores:
            axes.hist(scores, bins=50, range=(0, 1), label=name, color=color, alpha=0.8)
    axes.set(xlabel="fraud score", ylabel="decisions", yscale="log")
    axes.legend()
    return embedded(png(figure, dpi=_DPI))


def write_report(result: DemoResult, summary: dict[str, Any]) -> Path:
    """Write summary.json and report.html to the run's folder; return the report's path."""
    out = result.plan.out
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plots = {
        "Latency": _latency_plot(result),
        "Decisions over time, sent as fast as possible": _throughput_plot(result),
        "Scores by decision": _score_plot(result),
    }
    flagged = [d for d in result.decisions if d.decision != "approve"]
    flagged.sort(key=lambda d: d.score or 0.0, reverse=True)
    path = out / "report.html"
    path.write_text(render(_TEMPLATE, summary=summary, plots=plots, flagged=flagged[:20]))
    return path
