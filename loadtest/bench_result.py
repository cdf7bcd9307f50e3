"""Benchmark results: figures of several runs, machine and date, as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from flagger import __version__

__all__ = ["BenchResult", "machine"]


def machine() -> dict[str, Any]:
    """Return what a figure depends on and a reader cannot see."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


@dataclass
class BenchResult:
    """Figures of one scenario.

    Attributes:
        scenario: Its permanent id.
        settings: What it was run with.
        runs: Figure -> value of each run.
        units: Figure -> unit.
    """

    scenario: str
    settings: dict[str, Any]
    runs: dict[str, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, figure: str, value: float, unit: str) -> None:
        """Add one run's figure."""
        self.runs.setdefault(figure, []).append(value)
        self.units[figure] = unit

    def median(self, figure: str) -> float:
        """Return the median over the runs."""
        return statistics.median(self.runs[figure])

    def table(self) -> Table:
        """Return the figures for the terminal."""
        count = max(map(len, self.runs.values()), default=0)
        table = Table(title=f"{self.scenario}, {count} runs", title_justify="left")
        for name in ("figure", "median", "least", "most", "unit"):
            table.add_column(name, justify="left" if name in ("figure", "unit") else "right")
        for figure, values in self.runs.items():
            places = 0 if statistics.median(values) >= 1_000 else 2
            cells = [statistics.median(values), min(values), max(values)]
            table.add_row(figure, *(f"{v:,.{places}f}" for v in cells), self.units[figure])
        return table

    def write(self, folder: Path) -> Path:
        """Write `<scenario>.json`; return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.scenario}.json"
        content = {
            "scenario": self.scenario,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "flagger": __version__,
            "machine": machine(),
            "settings": self.settings,
            "figures": {
                name: {
                    "unit": self.units[name],
                    "median": statistics.median(values),
                    "least": min(values),
                    "most": max(values),
                    "runs": values,
                }
                for name, values in self.runs.items()
            },
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path
