"""`flagger loadtest`: prove the gateway's latency, or say why there is no proof."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from flagger.settings import load_settings
from loadtest.api_key import API_KEY_VARIABLE
from loadtest.arrivals import CONSTANT, SHAPES
from loadtest.bench_result import BenchResult
from loadtest.highest_rate import MAX_RUNS, highest_rate
from loadtest.load_stack import ASKED, GATEWAY, LoadPlan, Target, started
from loadtest.open_loop import load
from loadtest.slo import P99_LIMIT_MS

__all__ = ["loadtest"]

ALL = "all"
DEFAULT_RATE_PER_S = 100.0
"""What two cores answer with margin while everything else runs on them too."""


def _http_url(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str:
    if value is not None and not value.startswith(("http://", "https://")):
        raise click.BadParameter(f"{value!r} does not begin with http:// or https://")
    return (value or "").rstrip("/")


@click.command()
@click.option(
    "--rate", default=DEFAULT_RATE_PER_S, show_default=True,
    type=click.FloatRange(min=1, max=10_000), help="Requests per second, whatever the answers do.",
)  # fmt: skip
@click.option(
    "--duration", default=30.0, show_default=True, type=click.FloatRange(min=1, max=3_600),
    help="Measured seconds, after a warm-up.",
)  # fmt: skip
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(min=1), help="Runs.")
@click.option(
    "--repository", type=click.Path(file_okay=False, path_type=Path),
    help="Model repository. Default: FLAGGER_MODEL_REPOSITORY.",
)  # fmt: skip
@click.option(
    "--out", default=Path("runs") / "loadtest", show_default=True,
    type=click.Path(file_okay=False, path_type=Path), help="Folder for the results.",
)  # fmt: skip
@click.option(
    "--stream-rate", default=0.0, show_default=True, type=click.FloatRange(min=0, max=100_000),
    help="Transactions per second through Kafka meanwhile.",
)  # fmt: skip
@click.option(
    "--ask", "asked", multiple=True, default=(GATEWAY,), show_default=True,
    type=click.Choice((*ASKED, ALL)),
    help="Whom; may be repeated: one after the other on the same stack, side by side in the table.",
)  # fmt: skip
@click.option(
    "--shape", default=CONSTANT, show_default=True, type=click.Choice(tuple(SHAPES)),
    help="Of the rate over time; --rate is then the highest.",
)  # fmt: skip
@click.option(
    "--gateways", default=1, show_default=True, type=click.IntRange(min=1, max=8),
    help="Processes that share the requests.",
)  # fmt: skip
@click.option(
    "--flagged", default=0.0, type=click.FloatRange(min=0, max=0.9),
    help="Share of payments to flag, by a few busy customers and a lower threshold in a copy of "
    "the models: enough reviews for a p99 of explained decisions (scenario gateway-explained).",
)  # fmt: skip
@click.option(
    "--highest", is_flag=True,
    help="Look for the highest rate that passes, from --rate on (scenario gateway-highest-rate).",
)  # fmt: skip
@click.option(
    "--url", callback=_http_url,
    help="A gateway that runs already; it gets made-up payments! Its API key is read from the "
    "variable GATEWAY_API_KEY. Default: start one.",
)  # fmt: skip
def loadtest(
    rate: float,
    duration: float,
    repeats: int,
    repository: Path | None,
    out: Path,
    stream_rate: float,
    asked: tuple[str, ...],
    shape: str,
    gateways: int,
    flagged: float,
    highest: bool,
    url: str,
) -> None:
    """Ask the gateway at a constant rate and hold it to its promise.

    Starts Kafka, Triton, Valkey, a streamer and a gateway of its own, with fresh data. Ends with
    status 1 if p99 is above 100 ms, if a request fails, a repeated payment gets another answer or
    more than 5 % are answered without the model, and if the run is invalid because the load was not
    what it should have been.
    """
    whom = ASKED if ALL in asked else tuple(dict.fromkeys(asked))
    plan = LoadPlan(out, rate, duration, repeats, stream_rate, flagged, whom, shape, gateways)
    _require_sense(plan, highest=highest, url=url, repository=repository)
    key = os.environ.get(API_KEY_VARIABLE, "")
    console = Console()
    with console.status("starting") as status:
        repository = repository or load_settings().model_repository
        serving = (
            contextlib.nullcontext(Target((url,), api_key=key))
            if url
            else started(_whole(plan, highest), repository, status.update)
        )
        with serving as target:
            if highest:
                _show_highest(console, plan, highest_rate(target, plan, status.update))
                return
            result, judgements = load(target, plan, status.update)
    console.print(result.table() if len(whom) == 1 else _side_by_side(result, whom))
    console.print(f"written: {out / result.scenario}.json and .html")
    for run, judgement in enumerate(judgements, start=1):
        for reason in judgement.reasons:
            console.print(f"[red]run {run} {judgement.verdict}:[/red] {reason}")
    if any(judgement.verdict != "PASS" for judgement in judgements):
        sys.exit(1)
    if flagged:
        console.print(
            f"{result.median('explained'):,.0f} explained decisions, p99 "
            f"{result.median('explained p99'):.1f} ms; {result.median('approved'):,.0f} approvals, "
            f"p99 {result.median('approved p99'):.1f} ms"
        )
    if len(whom) == 1:
        console.print(
            f"[green]PASS:[/green] {rate:,.0f} requests/s, p99 {result.median('p99'):.1f} ms "
            f"(limit {P99_LIMIT_MS:.0f} ms), no failure, repeats answered the same"
        )


def _require_sense(plan: LoadPlan, *, highest: bool, url: str, repository: Path | None) -> None:
    """Raise UsageError for options that do not go together."""
    flagged, others = bool(plan.flagged_share), plan.asked != (GATEWAY,)
    for is_wrong, why in (
        (
            url and (plan.stream_rate_per_s or repository or flagged or plan.gateways > 1),
            "--stream-rate, --repository, --flagged and --gateways need gateways started here: "
            "no --url.",
        ),
        (others and (url or flagged), "--url and --flagged are for the gateway: no --ask."),
        (
            highest + flagged + (plan.shape != CONSTANT) > 1,
            "--highest, --flagged and --shape are different scenarios.",
        ),
        (highest and len(plan.asked) > 1, "--highest looks for one rate: one --ask."),
    ):
        if is_wrong:
            raise click.UsageError(why)


def _side_by_side(result: BenchResult, whom: tuple[str, ...]) -> Table:
    """Return medians of the latencies, a row for each that was asked."""
    table = Table(title="side by side, medians", title_justify="left")
    names = ("p50", "p95", "p99", "max", "failures")
    for name in ("asked", *names):
        table.add_column(name, justify="left" if name == "asked" else "right")
    for asked in whom:
        cells = (result.median(f"{asked} {name}") for name in names)
        table.add_row(asked, *(f"{value:,.1f}" for value in cells))
    return table


def _whole(plan: LoadPlan, highest: bool) -> LoadPlan:
    """Return the plan with as many runs as there may be: the traffic through Kafka must last."""
    return replace(plan, repeats=plan.repeats * MAX_RUNS) if highest else plan


def _show_highest(console: Console, plan: LoadPlan, result: BenchResult) -> None:
    console.print(result.table())
    console.print(f"written: {plan.out / result.scenario}.json")
    rate = result.median("highest rate that passed")
    if not rate:
        console.print("[red]FAIL:[/red] no rate passed; look at the reasons in the file")
        sys.exit(1)
    console.print(f"[green]highest rate that passed:[/green] {rate:,.0f} requests/s")
