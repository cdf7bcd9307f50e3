"""A load run's page: how its latencies are spread, and how they went over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loadtest.bench_result import BenchResult, machine
from loadtest.recording import Recording, quantile
from loadtest.slo import P99_LIMIT_MS
from train.page import embedded, new_figure, png, render

__all__ = ["write_load_report"]

_TEMPLATE = Path(__file__).parent / "templates" / "loadtest.html"
_DPI = 110
_LEAST_MS = 0.1


def write_load_report(out: Path, result: BenchResult, recordings: dict[str, Recording]) -> Path:
    """Write `<scenario>.html` and its pictures as files beside it; return the page's path.

    Args:
        out: Its folder.
        result: The figures of all runs, with `verdicts` and `reasons` in its settings.
        recordings: Every request of each run, by the run's name.
    """
    pictures = {
        "Latency, from when a request was due": ("latency", _spread(recordings)),
        "Second by second": ("seconds", _over_time(recordings)),
    }
    for name, picture in pictures.values():
        (out / f"{result.scenario}-{name}.png").write_bytes(picture)
    page = render(
        _TEMPLATE,
        result=result,
        machine=machine(),
        limit_ms=P99_LIMIT_MS,
        pictures={title: embedded(picture) for title, (_, picture) in pictures.items()},
    )
    path = out / f"{result.scenario}.html"
    path.write_text(page)
    return path


def _spread(recordings: dict[str, Recording]) -> bytes:
    """Draw the share of requests that took longer, down to one in ten thousand."""
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for name, recording in recordings.items():
        ordered = np.sort(np.array(recording.latencies_ms))
        if len(ordered):
            longer = 1 - np.arange(len(ordered)) / len(ordered)
            axes.plot(np.maximum(ordered, _LEAST_MS), longer, label=name)
    axes.axvline(P99_LIMIT_MS, color="crimson", linestyle="--", label="limit of the p99")
    axes.axhline(0.01, color="grey", linewidth=0.8)
    axes.set(xlabel="ms", ylabel="share that took longer", xscale="log", yscale="log")
    return _finished(figure, axes, "lower left")


def _over_time(recordings: dict[str, Recording]) -> bytes:
    figure = new_figure(6.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for name, recording in recordings.items():
        seconds = recording.by_second_ms()
        x = np.arange(len(seconds))
        (line,) = above.plot(
            x, [quantile(values, 0.99) for values in seconds], label=f"{name}, p99"
        )
        above.plot(x, [quantile(values, 0.5) for values in seconds], ":", color=line.get_color())
        below.plot(x, [len(values) for values in seconds], color=line.get_color())
    above.axhline(P99_LIMIT_MS, color="crimson", linestyle="--")
    above.set(ylabel="ms; dotted: p50", yscale="log")
    below.set(xlabel="second", ylabel="requests", ylim=(0, None))
    below.grid(alpha=0.3)
    return _finished(figure, above, "upper right")


def _finished(figure: Any, axes: Any, legend_at: str) -> bytes:
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="x-small", loc=legend_at)
    return png(figure, dpi=_DPI)
