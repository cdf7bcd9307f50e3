"""Compares two results of one scenario, as of main and of a branch, measured on one machine.

A noisy machine must not turn a comparison red by itself. A figure is worse only if its median left
the tolerance AND the runs of both sides do not overlap: the best new run is worse than the worst
old one. With three runs each, equal code is separated that way in one comparison of 20 (of the 20
orders of six runs, one has all new ones on the bad side), and the tolerance has to be left as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flagger.bench_results import Figure, StoredResult
from flagger.errors import DataError

__all__ = ["Change", "compare_results", "markdown"]

_HIGHER_IS_BETTER = {"tx/s", "rows/s", "requests/s"}
_LOWER_IS_BETTER = {"µs per tx", "ms", "s", "MiB"}
MIN_RUNS = 3
"""Fewest runs of a side: below, nothing can be said of their spread."""


@dataclass(frozen=True, slots=True)
class Change:
    """One figure on both sides.

    Attributes:
        figure: Its name.
        unit: Its unit.
        base: Median of the base.
        new: Median of the new result.
        slowdown: How much worse the new median is, as a factor: 1.1 is 10 % worse, 0.9 better.
        separated: Whether every new run is worse than every run of the base.
        is_worse: Whether that counts as a regression.
        note: Why it was not judged; "" if it was.
    """

    figure: str
    unit: str
    base: float
    new: float
    slowdown: float
    separated: bool
    is_worse: bool
    note: str = ""


def compare_results(
    base: Path, new: Path, tolerance: float, figures: Sequence[str] = ()
) -> list[Change]:
    """Compare the figures of two files that `flagger bench` wrote.

    Args:
        base: The older result.
        new: The newer result.
        tolerance: How much worse a median may be: 0.1 is 10 %.
        figures: Those to judge; empty: all whose unit has a direction.

    Raises:
        DataError: A file is no result, they are of different scenarios, machines or settings, a
            figure is missing on one side, or a side has too few runs.
    """
    remedy = (
        "Measure both with `flagger bench`, on one machine and with the same options; or name "
        "figures that both have."
    )
    old, now = (StoredResult.load(path, remedy) for path in (base, new))
    for part in ("scenario", "settings", "machine"):
        mine, theirs = getattr(now, part), getattr(old, part)
        if mine != theirs:
            problem = f"has another {part} than {base}: {mine}, not {theirs}"
            raise DataError(file=str(new), problem=problem, remedy=remedy)
    wanted = list(figures) or [name for name, f in old.figures.items() if _sign(f.unit)]
    changes = [_change(name, old.figure(name), now.figure(name), tolerance, new) for name in wanted]
    if not changes:
        raise DataError(
            file=str(base),
            problem="has no figure whose unit says which direction is better",
            remedy="Compare results of `flagger bench stream`, `latency` or `features`.",
        )
    return changes


def markdown(changes: Sequence[Change], tolerance: float) -> str:
    """Return the comparison as a Markdown table, for a job's summary and the terminal."""
    lines = [
        "| figure | unit | base | new | change | verdict |",
        "|---|---|---:|---:|---:|---|",
    ]
    lines.extend(_row(change) for change in changes)
    worse = sum(change.is_worse for change in changes)
    lines += ["", f"Tolerance {tolerance:.0%}; {worse} of {len(changes)} figures are worse."]
    return "\n".join(lines)


def _row(change: Change) -> str:
    moved = change.new / change.base - 1 if change.base else 0.0
    return (
        f"| {change.figure} | {change.unit} | {change.base:,.4g} | {change.new:,.4g} "
        f"| {moved:+.1%} | {_verdict(change)} |"
    )


def _verdict(change: Change) -> str:
    if change.note:
        return change.note
    if change.is_worse:
        return "**worse**"
    return "within the noise" if change.slowdown > 1 and not change.separated else "fine"


def _change(name: str, old: Figure, now: Figure, tolerance: float, new_file: Path) -> Change:
    sign = _sign(old.unit)
    if sign == 0 or old.unit != now.unit:
        raise DataError(
            file=str(new_file),
            problem=f"{name!r} is in {now.unit!r} (base: {old.unit!r}): no direction",
            remedy="Name a figure in tx/s, rows/s, requests/s, µs per tx, ms, s or MiB.",
        )
    if min(len(old.runs), len(now.runs)) < MIN_RUNS:
        raise DataError(
            file=str(new_file),
            problem=f"{name!r} has {len(now.runs)} runs (base: {len(old.runs)}), "
            f"fewer than {MIN_RUNS}",
            remedy="Measure with --repeats 3 or more.",
        )
    base, new = old.median, now.median
    if base <= 0 or new <= 0:
        return Change(name, old.unit, base, new, 1.0, False, False, note="not judged: not positive")
    slowdown = new / base if sign < 0 else base / new
    separated = min(now.runs) > max(old.runs) if sign < 0 else max(now.runs) < min(old.runs)
    is_worse = separated and slowdown > 1 + tolerance
    return Change(name, old.unit, base, new, slowdown, separated, is_worse)


def _sign(unit: str) -> int:
    """Return 1 where more is better, -1 where less is, 0 where neither is known."""
    return 1 if unit in _HIGHER_IS_BETTER else -1 if unit in _LOWER_IS_BETTER else 0
