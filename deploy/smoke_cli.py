"""`flagger smoke`: does a deployment decide?"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click

from deploy.smoke import SmokePlan, run_smoke
from flagger.addresses import resolve_settings

__all__ = ["smoke"]


@click.command()
@click.option("--transactions", default=200, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--gateway", "gateway_url", help="Root of a gateway to ask, too.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with an API key of the scope score.",
)
@click.option("--timeout-s", default=60.0, show_default=True, type=click.FloatRange(min=1))
def smoke(
    transactions: int, gateway_url: str | None, key_file: Path | None, timeout_s: float
) -> None:
    """Send payments through a running deployment and check that each is decided exactly once.

    They are real payments of customers named smoke-customer-*, and stay in the topics.
    """
    plan = SmokePlan(
        transactions=transactions,
        gateway_url=gateway_url,
        gateway_key=key_file.read_text().strip() if key_file else "",
        timeout_s=timeout_s,
    )
    result = run_smoke(resolve_settings(), plan, lambda text: click.echo(text, err=True))
    counts = Counter(decision for decided in result.decisions.values() for decision in decided)
    click.echo(
        f"{transactions} payments over Kafka: p50 {result.latency_ms(50):.1f} ms, "
        f"p99 {result.latency_ms(99):.1f} ms from sending to reading the decision; "
        f"{len(result.answers)} over the gateway"
    )
    click.echo(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    for failure in result.failures:
        click.echo(f"FAILED {failure}", err=True)
    sys.exit(1 if result.failures else 0)
