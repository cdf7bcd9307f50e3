"""`flagger scale`: what a rate needs, and what breaks first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from deploy.scale_simulation import compare, simulate
from deploy.scaling import Demand, Figures, Plan, limits_of, plan_for
from deploy.valkey_rate import measure_valkey
from flagger.settings import load_settings

__all__ = ["plan_rows", "scale"]

_WIDTH = 100


def plan_rows(plan: Plan) -> list[tuple[str, str]]:
    """Return what and how many of it, for people."""
    return [
        ("cells", f"{plan.cells:,}"),
        ("partitions in each cell", f"{plan.partitions:,}"),
        ("streamers", f"{plan.streamers:,}"),
        ("streamer cores", f"{plan.streamer_cores:,.1f}"),
        ("side logs, part of each main thread", f"{plan.side_share:.1%}"),
        ("Triton CPU instances", f"{plan.triton_instances:,}"),
        ("gateway processes", f"{plan.gateways:,}"),
        ("Kafka cores, at most", f"{plan.kafka_cores:,.1f}"),
        ("Valkey memory of primaries, GB", f"{plan.valkey_bytes / 1e9:,.1f}"),
        ("Valkey writes/s", f"{plan.valkey_writes_per_s:,.0f}"),
        ("hours to read a month's log again", f"{plan.rebuild_hours:,.1f}"),
    ]


def _figures(results: Path | None, valkey: bool, figures_file: Path | None) -> Figures:
    found = Figures.load(figures_file) if figures_file else Figures.load()
    if results is not None:
        found = Figures.from_results(
            results,
            valkey_writes_per_s=found.valkey_writes_per_s,
            customer_bytes=found.customer_bytes,
            terminal_bytes=found.terminal_bytes,
        )
    if valkey:
        url = load_settings().valkey_url
        if url is None:
            raise click.UsageError("--valkey needs FLAGGER_VALKEY_URL, with an empty database")
        rate = measure_valkey(url)
        found = replace(
            found,
            valkey_writes_per_s=rate.writes_per_s,
            customer_bytes=rate.customer_bytes,
            terminal_bytes=rate.terminal_bytes,
        )
    return found


def _print_simulation(demands: list[Demand], figures: Figures) -> None:
    console = Console(width=_WIDTH, highlight=False)
    table = Table(title="Simulated, not measured: streamers at the peak, with bursts")
    for name in ("tx/s", "streamers", "simulated", "p50 ms", "p99 ms", "busiest thread",
                 "peak lag", "catch-up s"):  # fmt: skip
        table.add_column(name, justify="right")
    for demand in demands:
        row = simulate(demand, figures)
        table.add_row(
            f"{row.rate:,.0f}", f"{row.streamers:,}", f"{row.sampled:,}", f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}", f"{row.utilisation:.0%}", f"{row.peak_lag:,}",
            f"{row.catch_up_s:.2f}",
        )  # fmt: skip
    console.print(table)
    console.print(
        "Peak lag: messages, as the busiest streamer is killed. Catch-up: from its first decision "
        "after the restart until the lag is usual again."
    )
    table = Table(title="One streamer, no bursts: measured beside simulated")
    for name in ("tx/s", "p50 measured", "simulated", "error", "p99 measured", "simulated",
                 "error"):  # fmt: skip
        table.add_column(name, justify="right")
    for found in compare(figures):
        cells = [f"{found.rate:,}"]
        for measured, made in zip(found.measured_ms, found.simulated_ms, strict=True):
            cells += [f"{measured:.1f}", f"{made:.1f}", f"{made / measured - 1:+.0%}"]
        table.add_row(*cells)
    console.print(table)


@click.command()
@click.option(
    "--rate", "rates", multiple=True, type=click.FloatRange(min=1),
    default=(1_000, 10_000, 100_000, 1_000_000), show_default=True,
    help="Transactions per second at the peak; may be repeated.",
)  # fmt: skip
@click.option("--gateway-share", default=Demand(1).gateway_share, show_default=True,
              type=click.FloatRange(0, 1), help="Part that the gateway decides.")  # fmt: skip
@click.option("--utilisation", default=Demand(1).utilisation, show_default=True,
              type=click.FloatRange(0.05, 0.95), help="Most that a core is used.")  # fmt: skip
@click.option("--customers", type=click.FloatRange(min=1),
              help="Customers ever seen. Default: 14,400 for each transaction per second.",
              )  # fmt: skip
@click.option("--valkey-gb", default=256.0, show_default=True, type=click.FloatRange(min=1),
              help="Memory of the largest Valkey server.")  # fmt: skip
@click.option("--figures", "figures_file", type=click.Path(exists=True, path_type=Path),
              help="Figures of another machine, written by --save.")  # fmt: skip
@click.option("--results", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Derive the figures from these benchmark results.")  # fmt: skip
@click.option("--valkey", is_flag=True,
              help="Measure Valkey at FLAGGER_VALKEY_URL, an empty database.")  # fmt: skip
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the figures that were used.")  # fmt: skip
@click.option("--simulate", "simulated", is_flag=True,
              help="Simulate the plan's streamers instead, one of them lost.")  # fmt: skip
def scale(
    rates: tuple[float, ...],
    gateway_share: float,
    utilisation: float,
    customers: float | None,
    valkey_gb: float,
    figures_file: Path | None,
    results: Path | None,
    valkey: bool,
    save: Path | None,
    simulated: bool,
) -> None:
    """Compute what a rate of payments needs, and what breaks first on the way there.

    It multiplies figures of one machine with two cores (docs/scaling.md); no cluster was measured.
    """
    figures = _figures(results, valkey, figures_file)
    if save is not None:
        figures.save(save)
    demands = []
    for rate in rates:
        demand = Demand(rate, gateway_share, utilisation, valkey_max_bytes=valkey_gb * 1e9)
        if customers is not None:
            demand = replace(demand, customers_per_tps=customers / rate)
        demands.append(demand)
    if simulated:
        _print_simulation(demands, figures)
        return
    columns = [plan_rows(plan_for(figures, demand)) for demand in demands]
    lines = ["| at the peak, tx/s | " + " | ".join(f"{rate:,.0f}" for rate in rates) + " |"]
    lines.append("|---" * (len(rates) + 1) + "|")
    for i, (name, _) in enumerate(columns[0]):
        lines.append(f"| {name} | " + " | ".join(column[i][1] for column in columns) + " |")
    for demand in demands if customers is not None else demands[:1]:
        of = f" of {demand.rate:,.0f} tx/s" if customers is not None and len(demands) > 1 else ""
        lines += ["", f"| what runs out{of} | from tx/s | what helps |", "|---|---|---|"]
        for limit in limits_of(figures, demand):
            if limit.rate < float("inf"):
                lines.append(f"| {limit.what} | {limit.rate:,.0f} | {limit.remedy} |")
    Console(width=_WIDTH, highlight=False).print("\n".join(lines), markup=False, soft_wrap=True)
