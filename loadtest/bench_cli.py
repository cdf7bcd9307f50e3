"""`flagger bench`: measure, on this machine, with real parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
from rich.console import Console

from flagger.features import FeatureContract
from flagger.settings import load_settings
from loadtest.bench_alerts import bench_alerts
from loadtest.bench_alerts_burst import SCENARIO as ALERTS_BURST
from loadtest.bench_alerts_burst import bench_alerts_burst
from loadtest.bench_compare import compare_results, markdown
from loadtest.bench_latency import PARTITIONS, bench_latency, latency_scenario
from loadtest.bench_poison import bench_poison
from loadtest.bench_profile import bench_profile
from loadtest.bench_publish import PublishPlan, bench_publish
from loadtest.bench_recovery import RecoveryPlan, bench_recovery
from loadtest.bench_result import BenchResult
from loadtest.bench_rival import RivalPlan, bench_rival
from loadtest.bench_stream import bench_stream
from train.replay import replay
from train.simulate import SimulationConfig, simulate
from train.sources import read_sorted
from train.vocabulary import build_vocabularies

__all__ = ["bench"]

_RESULTS = Path("runs") / "bench"
_BENCH_DATA = SimulationConfig(customers=5_000, terminals=10_000, days=60, seed=7)


def _table(data: Path | None, limit: int | None) -> pa.Table:
    table = pa.Table.from_batches(simulate(_BENCH_DATA)) if data is None else read_sorted(data)
    return table if limit is None else table.slice(0, limit)


def _measure(out: Path, scenario: str, run: Callable[..., BenchResult], **more: Any) -> BenchResult:
    """Run a scenario on the live models, telling its steps, and show and write what it found."""
    console = Console()
    with console.status("starting") as status:
        result = run(
            repository=load_settings().model_repository,
            out=out / scenario,
            on_step=status.update,
            **more,
        )
    _finish(result, console, out)
    return result


def _finish(result: BenchResult, console: Console, out: Path) -> None:
    console.print(result.table())
    console.print(f"written: {result.write(out)}")


def _judge(result: BenchResult) -> None:
    """Say what is against a result; if anything is, end with status 1."""
    for reason in result.settings["reasons"]:
        click.echo(f"FAIL: {reason}")
    if result.settings["reasons"]:
        raise SystemExit(1)


data_option = click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Transactions. Default: simulated, with a fixed seed.",
)
limit_option = click.option("--limit", type=click.IntRange(min=1), help="Only the first N.")
repeats_option = click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(min=1, max=16)
)
pairs_option = click.option(
    "--repeats", default=5, show_default=True, type=click.IntRange(min=1, max=8)
)
"""For scenarios that need two Valkey databases per repeat: it has 16."""
out_option = click.option(
    "--out",
    default=_RESULTS,
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results.",
)


@click.group()
def bench() -> None:
    """Measure throughput, latency and features; results are medians with their spread."""


@bench.command()
@data_option
@limit_option
@repeats_option
@out_option
def stream(data: Path | None, limit: int | None, repeats: int, out: Path) -> None:
    """Decisions per second from a full topic, beside its ceilings (scenario stream-prefilled)."""
    _measure(out, "stream-prefilled", bench_stream, table=_table(data, limit), repeats=repeats)


@bench.command()
@data_option
@limit_option
@out_option
def profile(data: Path | None, limit: int | None, out: Path) -> None:
    """Where the streamer's time goes, function by function (scenario stream-profile)."""
    _measure(out, "stream-profile", bench_profile, table=_table(data, limit))


@bench.command()
@data_option
@repeats_option
@out_option
@click.option(
    "--rate",
    default=2_000.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Transactions per second.",
)
@click.option(
    "--partitions",
    default=PARTITIONS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of the transactions topic; another number than the default is a scenario of its own.",
)
def latency(data: Path | None, repeats: int, out: Path, rate: float, partitions: int) -> None:
    """Milliseconds from a transaction to its decision at a given rate (scenario latency-RATE)."""
    _measure(
        out,
        latency_scenario(rate, partitions),
        bench_latency,
        table=_table(data, None),
        rate_per_s=rate,
        partitions=partitions,
        repeats=repeats,
    )


@bench.command()
@data_option
@repeats_option
@out_option
@click.option(
    "--rate", default=2_000.0, show_default=True, type=click.FloatRange(min=0),
    help="Transactions per second; 0 leaves this scenario out.",
)  # fmt: skip
@click.option(
    "--burst", default=10_000, show_default=True, type=click.IntRange(min=0),
    help="Flags at once; 0 leaves this scenario out.",
)  # fmt: skip
def alerts(data: Path | None, repeats: int, out: Path, rate: float, burst: int) -> None:
    """From a transaction to its alert by mail and webhook, and what a burst of flags does.

    Scenario alerts-RATE measures milliseconds from a transaction to its alert. Scenario
    alerts-burst flags many at once and counts messages and the desk's cases; it ends with status 1
    if a flag is lost or if there are more messages than the rule lets through.
    """
    table = _table(data, None)
    if rate:
        scenario = f"alerts-{rate:.0f}"
        _measure(out, scenario, bench_alerts, table=table, rate_per_s=rate, repeats=repeats)
    if burst:
        _judge(
            _measure(
                out, ALERTS_BURST, bench_alerts_burst, table=table, flags=burst, repeats=repeats
            )
        )


@bench.command()
@data_option
@limit_option
@repeats_option
@out_option
def features(data: Path | None, limit: int | None, repeats: int, out: Path) -> None:
    """Transactions per second through the feature engine alone (scenario features-replay)."""
    console = Console()
    table = _table(data, limit)
    contract = FeatureContract(build_vocabularies(table, np.ones(table.num_rows, dtype=np.bool_)))
    chunks = table.to_batches(max_chunksize=65_536)
    for _ in replay(chunks[:1], contract):
        pass  # compiles the kernels
    result = BenchResult("features-replay", {"transactions": table.num_rows})
    for _ in range(repeats):
        start_s = time.perf_counter()
        for _ in replay(chunks, contract):
            pass
        seconds = time.perf_counter() - start_s
        result.add("replay", table.num_rows / seconds, "tx/s")
        result.add("one million transactions", seconds / table.num_rows * 1e6, "s")
    _finish(result, console, out)


@bench.command()
@repeats_option
@out_option
@click.option(
    "--customers", default=1_000_000, show_default=True, type=click.IntRange(min=1),
    help="Customers in state; another number gives the scenario another id.",
)  # fmt: skip
@click.option(
    "--terminals", default=100_000, show_default=True, type=click.IntRange(min=1),
    help="Terminals in state.",
)  # fmt: skip
@click.option(
    "--rate", default=2_000.0, show_default=True, type=click.FloatRange(min=1),
    help="Transactions per second meanwhile.",
)  # fmt: skip
def recovery(repeats: int, out: Path, customers: int, terminals: int, rate: float) -> None:
    """Seconds from a restart after kill -9 to new decisions (scenario recovery-1m)."""
    plan = RecoveryPlan(customers, min(terminals, customers), rate)
    _measure(out, plan.scenario, bench_recovery, plan=plan, repeats=repeats)


@bench.command()
@data_option
@limit_option
@pairs_option
@out_option
def poison(data: Path | None, limit: int | None, repeats: int, out: Path) -> None:
    """What one bad message in 1,000 costs (scenario stream-poison)."""
    _measure(out, "stream-poison", bench_poison, table=_table(data, limit), repeats=repeats)


@bench.command()
@data_option
@limit_option
@pairs_option
@out_option
@click.option(
    "--rate", default=20.0, show_default=True, type=click.FloatRange(min=1),
    help="Transactions per second of the latency part; the rival must keep up.",
)  # fmt: skip
def rival(data: Path | None, limit: int | None, repeats: int, out: Path, rate: float) -> None:
    """The stream against one HTTP request per message (scenario rival-per-message)."""
    plan, table = RivalPlan(rate_per_s=rate), _table(data, limit)
    _measure(out, "rival-per-message", bench_rival, table=table, plan=plan, repeats=repeats)


@bench.command()
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(min=1), help="Runs.")
@out_option
@click.option(
    "--rate", default=1_000.0, show_default=True, type=click.FloatRange(min=1, max=10_000),
    help="Requests per second, whatever the answers do.",
)  # fmt: skip
@click.option(
    "--switches", default=3, show_default=True, type=click.IntRange(min=1, max=100),
    help="Publishes in each run, and as many roll-backs.",
)  # fmt: skip
def publish(repeats: int, out: Path, rate: float, switches: int) -> None:
    """Publish and roll back while the gateway decides (scenario publish-RATE).

    Ends with status 1 if a request fails, if the gateway does not follow, or if an answer names
    another version than the live one.
    """
    plan = PublishPlan(rate, switches)
    _judge(_measure(out, plan.scenario, bench_publish, plan=plan, repeats=repeats))


@bench.command()
@click.argument("base", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tolerance", default=0.1, show_default=True, type=click.FloatRange(min=0),
    help="How much worse a median may be; 0.1 is 10 %.",
)  # fmt: skip
@click.option(
    "--figure", "figures", multiple=True,
    help="Judge this figure only; may be repeated. Default: all with a direction.",
)  # fmt: skip
def compare(base: Path, new: Path, tolerance: float, figures: tuple[str, ...]) -> None:
    """Compare two results, BASE.json and NEW.json, of one machine; exit code 1: NEW is worse.

    Worse means that the median left the tolerance and that no run of NEW is as good as any of BASE.
    """
    changes = compare_results(base, new, tolerance, figures)
    click.echo(markdown(changes, tolerance))
    if any(change.is_worse for change in changes):
        raise SystemExit(1)
