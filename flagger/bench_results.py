"""Reads benchmark results: what `flagger bench` and `flagger loadtest` wrote for each scenario.

Training's report, the scaling calculator and the comparison of two results read them. They are
data: nothing is measured here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from flagger.errors import DataError

__all__ = ["Figure", "Machine", "StoredResult"]


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured.

    Attributes:
        cpu: The processor's name.
        cores: Their number.
        system: Its name and version.
        python: The interpreter's version.
    """

    cpu: str
    cores: int
    system: str
    python: str


class Figure(msgspec.Struct, frozen=True):
    """What was measured.

    Attributes:
        unit: Of all that follows; "" for a count.
        median: Over the runs.
        runs: The value of each.
    """

    unit: str
    median: float
    runs: tuple[float, ...]


class _Content(msgspec.Struct):
    scenario: str
    at: str
    machine: Machine
    settings: dict[str, Any]
    figures: dict[str, Figure]


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A scenario's result.

    Attributes:
        path: Its file.
        remedy: What to do where it lacks something.
        scenario: Its permanent id.
        at: When it was written, RFC 3339.
        machine: Where it was measured.
        settings: What it was run with.
        figures: By name.
    """

    path: Path
    remedy: str
    scenario: str
    at: str
    machine: Machine
    settings: dict[str, Any]
    figures: dict[str, Figure]

    @classmethod
    def load(cls, path: Path, remedy: str) -> Self:
        """Read a file.

        Args:
            path: `<scenario>.json`.
            remedy: Ends the text of each error.

        Raises:
            DataError: It cannot be read, or is no result.
        """
        try:
            # Python's JSON, not msgspec's: a figure may be NaN.
            found = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), _Content)
        except (OSError, ValueError) as error:  # msgspec's are ValueErrors
            what = "cannot be read" if isinstance(error, OSError) else "is no benchmark result"
            raise DataError(file=str(path), problem=f"{what} ({error})", remedy=remedy) from error
        return cls(
            path, remedy, found.scenario, found.at, found.machine, found.settings, found.figures
        )

    def figure(self, name: str) -> Figure:
        """Return a figure; DataError if it was not measured."""
        if name not in self.figures:
            known = ", ".join(self.figures)
            raise DataError(
                file=str(self.path), problem=f"has no figure {name!r}, only {known}",
                remedy=self.remedy,
            )  # fmt: skip
        return self.figures[name]

    def median(self, name: str) -> float:
        """Return the median of a figure's runs; DataError if it was not measured."""
        return self.figure(name).median

    @property
    def rate_per_s(self) -> float:
        """Messages or requests a second; DataError if it was not run at a rate."""
        try:
            return float(self.settings["rate_per_s"])
        except (KeyError, TypeError, ValueError):
            raise DataError(
                file=str(self.path), problem="has no rate_per_s in its settings", remedy=self.remedy
            ) from None
