"""`flagger decisions`: what was decided, from the DynamoDB table."""

from __future__ import annotations

import sys
from contextlib import closing

import click
import msgspec

from flagger.alert import Alert
from flagger.decision_table import MAX_RECENT, DecisionTable
from flagger.errors import ConfigurationError
from flagger.settings import load_settings

__all__ = ["decisions"]


def _table() -> DecisionTable:
    settings = load_settings()
    if settings.decision_table is None:
        raise ConfigurationError(
            "FLAGGER_DECISION_TABLE is not set: it names the table (docs/aws.md)."
        )
    return DecisionTable(settings.decision_table, region=settings.decision_table_region)


def _show(alert: Alert) -> None:
    click.echo(msgspec.json.encode(alert).decode())


@click.group()
def decisions() -> None:
    """Look up what was decided in the DynamoDB table; one JSON object a line."""


@decisions.command()
@click.argument("transaction_id")
def find(transaction_id: str) -> None:
    """Show the decision about a transaction; status 1 if the table has none."""
    with closing(_table()) as table:
        found = table.find(transaction_id)
    if found is None:
        click.echo("no decision about this transaction", err=True)
        sys.exit(1)
    _show(found)


@decisions.command()
@click.argument("customer_id")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, MAX_RECENT))
def recent(customer_id: str, limit: int) -> None:
    """Show a customer's latest decisions, newest first."""
    with closing(_table()) as table:
        for alert in table.recent(customer_id, limit):
            _show(alert)
