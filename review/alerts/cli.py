"""`flagger alerts`: tell people of flagged transactions, and check who would be told."""

from __future__ import annotations

from pathlib import Path

import click
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console
from rich.table import Table

from flagger.addresses import resolve_kafka_settings
from flagger.health import Health, serve_health
from flagger.kafka_access import require_access
from flagger.service import log_to_stderr, metrics_options, until_stopped
from flagger.settings import load_settings
from review.alerts.metrics import AlertMetrics
from review.alerts.receivers import Transport, apprise_transport
from review.alerts.rules import AlertRules, load_alert_rules
from review.alerts.segments import read_segments
from review.alerts.service import AlertService
from review.alerts.texts import notice

__all__ = ["alerts"]

file_option = click.option(
    "--file",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Receivers and rules. Default: FLAGGER_ALERTS_FILE.",
)


@click.group()
def alerts() -> None:
    """Mail, chat and webhooks about flagged transactions, by rules and in bounds."""


@alerts.command()
@file_option
@metrics_options(9103)
def run(file: Path | None, metrics_port: int, metrics_host: str) -> None:
    """Tell receivers of alerts until Ctrl-C or SIGTERM.

    Offsets are committed once receivers have taken what lies before them: a restart goes on where
    this one ends.
    """
    log_to_stderr()
    settings = resolve_kafka_settings()
    rules = load_alert_rules(file or settings.alerts_file)
    transports = _transports(rules)
    require_access(settings, AdminClient, KafkaException)
    keep_going = until_stopped()
    metrics = AlertMetrics()
    health = Health({"partitions": "Kafka has assigned no partition yet."})
    if metrics_port:
        serve_health(health, metrics.registry, metrics_host, metrics_port)
    click.echo(
        f"telling {', '.join(sorted(transports))} of {settings.alerts_topic}; stop with Ctrl-C",
        err=True,
    )
    AlertService(settings, rules, transports, metrics, keep_going=keep_going, health=health).run()


@alerts.command()
@file_option
@click.option("--send", is_flag=True, help="Send each receiver a message that says it is a test.")
def check(file: Path | None, send: bool) -> None:
    """Check the file and its URLs; with --send, that receivers take messages. Exit code 1: no."""
    rules = load_alert_rules(file or load_settings().alerts_file)
    transports = _transports(rules)
    read_segments(rules)
    if rules.heartbeat is not None:
        rules.heartbeat.read("heartbeat")
    console = Console()
    console.print(_table(rules))
    if not send:
        return
    text = notice("Fraud Flagger: test", "This receiver gets alerts of flagged payments.", "info")
    failed = False
    for name, transport in transports.items():
        why_not = transport(text)
        failed |= bool(why_not)
        console.print(f"{name}: {why_not or 'taken'}", markup=False)
    if failed:
        raise SystemExit(1)


def _transports(rules: AlertRules) -> dict[str, Transport]:
    return {
        name: apprise_transport(name, secret.read(f"receiver {name}"))
        for name, secret in rules.receiver.items()
    }


def _table(rules: AlertRules) -> Table:
    table = Table(title="For each receiver the first rule that matches", title_justify="left")
    for name in ("receiver", "rule", "matches", "messages"):
        table.add_column(name)
    for receiver in rules.receiver:
        for rule in rules.rules_of(receiver):
            conditions = {
                name: getattr(rule, name)
                for name in rule.__struct_fields__
                if name not in ("name", "receivers", "burst", "digest_every_s", "named")
                and getattr(rule, name) not in ([], None, 0.0, "info")
            }
            told = "; ".join(f"{name} {_words(value)}" for name, value in conditions.items())
            limit = f"{rule.burst} at once, then one in {rule.digest_every_s:g} s"
            table.add_row(receiver, rule.name, told or "every alert", limit)
    return table


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
