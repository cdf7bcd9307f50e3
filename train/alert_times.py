"""Time from a payment to its alert, beside one HTTP request per message, for the report.

Nothing is measured here: a file of transactions says nothing about it. The figures are those that
`flagger bench` has written, with its machine and date.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flagger.bench_results import StoredResult

__all__ = ["BACKLOG_S", "AlertTime", "AlertTimes", "Backlog", "Measured", "read_alert_times"]

_RIVAL = "rival-per-message"
_COMMANDS = {
    "latency-2000": "flagger bench latency --rate 2000 --repeats 3",
    "alerts-2000": "flagger bench alerts --repeats 3",
    _RIVAL: "flagger bench rival --repeats 3",
}
"""What makes each scenario's file."""
_STREAM_BESIDE = "stream: payment to decision"
_RIVAL_BESIDE = "one message at a time: payment to decision"
_ROWS = (
    ("latency-2000", "stream: payment to committed decision", "event to decision {q}"),
    ("alerts-2000", "stream: payment to delivered webhook", "event to webhook {q}"),
    ("alerts-2000", "stream: payment to delivered mail", "event to mail {q}"),
    (_RIVAL, _STREAM_BESIDE, "stream, event to decision {q} at {rate:.0f}/s"),
    (_RIVAL, _RIVAL_BESIDE, "rival, event to decision {q} at {rate:.0f}/s"),
)
"""Scenario, words, and the figure's name in its file."""
BACKLOG_S = 60.0
"""For so long payments come in faster than one at a time can be decided, in `Backlog`."""


@dataclass(frozen=True)
class Measured:
    """Where and when a scenario was measured, or the command that does it.

    Attributes:
        scenario: Its id.
        command: What writes its file.
        machine: Processor and cores; None: there is no file, or one without these figures.
        day: In ISO format; None as before.
    """

    scenario: str
    command: str
    machine: str | None
    day: str | None


@dataclass(frozen=True)
class AlertTime:
    """One row of the report.

    Attributes:
        words: What is timed.
        rate_per_s: Payments a second.
        p50_ms: Median over the runs of their medians, milliseconds.
        p99_ms: The same of their 99th percentiles.
        scenario: Where it comes from.
    """

    words: str
    rate_per_s: float
    p50_ms: float
    p99_ms: float
    scenario: str


@dataclass(frozen=True)
class Backlog:
    """What follows from the rival's most payments a second: calculated, not measured.

    Attributes:
        rival_per_s: Payments that one at a time decides in a second.
        stream_per_s: That the stream decides on the same machine.
        rate_per_s: A rate that the stream was measured at.
        wait_s: How long the newest payment waits for its decision after `BACKLOG_S` of that rate.
    """

    rival_per_s: float
    stream_per_s: float
    rate_per_s: float
    wait_s: float


@dataclass(frozen=True)
class AlertTimes:
    """What the report says.

    Attributes:
        folder: Where the files were looked for.
        sources: Each scenario, there or missing.
        rows: What is known.
        backlog: None: the rival was not measured.
    """

    folder: str
    sources: list[Measured]
    rows: list[AlertTime]
    backlog: Backlog | None

    def row(self, words: str) -> AlertTime | None:
        """Return the row of these words."""
        return next((row for row in self.rows if row.words == words), None)

    @property
    def rival_minus_stream_ms(self) -> float | None:
        """Median of one at a time less the stream's, at a rate that both hold; None: unknown."""
        rival, stream = self.row(_RIVAL_BESIDE), self.row(_STREAM_BESIDE)
        return None if rival is None or stream is None else rival.p50_ms - stream.p50_ms


def _source(scenario: str, command: str, result: StoredResult | None) -> Measured:
    if result is None:
        return Measured(scenario, command, None, None)
    machine = f"{result.machine.cpu}, {result.machine.cores} cores"
    return Measured(scenario, command, machine, result.at[:10])


def _backlog(found: dict[str, StoredResult]) -> Backlog | None:
    rival, stream = found.get(_RIVAL), found.get("latency-2000")
    if rival is None or stream is None or not {"rival", "stream"} <= rival.figures.keys():
        return None
    rate_per_s, rival_per_s = stream.rate_per_s, rival.median("rival")
    # After T seconds rate x T payments have come and rival x T are decided; the newest is decided
    # once all before it are: at rate x T / rival.
    wait_s = max(0.0, (rate_per_s / rival_per_s - 1.0) * BACKLOG_S)
    return Backlog(rival_per_s, rival.median("stream"), rate_per_s, wait_s)


def read_alert_times(folder: Path) -> AlertTimes:
    """Return what the benchmark results in a folder say; scenarios that are missing are named.

    Args:
        folder: Where `flagger bench` wrote `<scenario>.json`.

    Raises:
        DataError: A file is there and is no benchmark result.
    """
    found = {}
    for scenario, command in _COMMANDS.items():
        path = folder / f"{scenario}.json"
        if path.exists():
            found[scenario] = StoredResult.load(path, f"Run `{command}` again, or remove the file.")
    rows = []
    for scenario, words, name in _ROWS:
        if scenario not in found:
            continue
        figures, rate = found[scenario].figures, found[scenario].rate_per_s
        p50, p99 = (figures.get(name.format(q=q, rate=rate)) for q in ("p50", "p99"))
        if p50 is not None and p99 is not None:
            rows.append(AlertTime(words, rate, p50.median, p99.median, scenario))
    known = {row.scenario for row in rows}
    sources = [
        _source(scenario, command, found[scenario] if scenario in known else None)
        for scenario, command in _COMMANDS.items()
    ]
    return AlertTimes(str(folder), sources, rows, _backlog(found))
