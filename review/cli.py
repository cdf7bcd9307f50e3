"""`flagger desk`: the consumer, the pages, the database and the users of the review desk."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

import click

from flagger.addresses import resolve_kafka_settings
from flagger.errors import ConfigurationError
from flagger.health import Health, serve_health
from flagger.kafka_access import require_access
from flagger.service import log_to_stderr, metrics_options, until_stopped
from flagger.settings import Settings, load_settings

if TYPE_CHECKING:  # at run time each command imports what it needs
    from review.history_consumer import HistoryThread
    from review.metrics import DeskMetrics

__all__ = ["desk"]

logger = logging.getLogger(__name__)


@click.group()
def desk() -> None:
    """Run the analysts' review desk: flags become cases, decisions become labels."""


@desk.command()
def migrate() -> None:
    """Bring the case store to this release's layout; changes nothing if it has it."""
    from review.database import migrate as bring
    from review.database import open_engine

    before, now = bring(open_engine(load_settings().case_store_url.get_secret_value()))
    click.echo(f"layout {now}" if before == now else f"layout {before or 'none'} -> {now}")


@desk.command()
@metrics_options(9104)
def consume(metrics_port: int, metrics_host: str) -> None:
    """Store flags as cases and send the analysts' labels, until Ctrl-C or SIGTERM."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    from review.consumer import DeskConsumer
    from review.database import open_engine, require_layout
    from review.life import CaseLife
    from review.metrics import PARTS, DeskMetrics
    from review.store import CaseStore

    log_to_stderr()
    settings = resolve_kafka_settings()
    require_access(settings, AdminClient, KafkaException)
    engine = open_engine(settings.case_store_url.get_secret_value())
    require_layout(engine)
    keep_going = until_stopped()
    metrics = DeskMetrics()
    health = Health({PARTS[0]: "Kafka has assigned no partition yet."})
    metrics.show_waiting(health)
    if metrics_port:
        serve_health(health, metrics.registry, metrics_host, metrics_port)
    history = _history(settings, metrics, health)
    click.echo(f"storing {settings.alerts_topic} in the case store; stop with Ctrl-C", err=True)
    life = CaseLife(engine, _now_ms, settings.desk_claim_minutes * 60_000)
    try:
        DeskConsumer(
            settings,
            CaseStore(engine),
            life,
            metrics,
            health,
            keep_going=keep_going,
            side_thread=history,
        ).run()
    finally:
        if history is not None:
            history.close()


@desk.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=int, default=8501, show_default=True)
def serve(host: str, port: int) -> None:
    """Serve the desk's pages, until Ctrl-C or SIGTERM."""
    from review.server import serve as serve_pages

    log_to_stderr()
    serve_pages(load_settings(), host, port)


@desk.command("add-user")
@click.argument("name")
@click.option("--role", type=click.Choice(["analyst", "lead"]), default="analyst")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input.")
def add_user(name: str, role: str, password_stdin: bool) -> None:
    """Add a user of the pages, or give one a new password or role. Leads decide escalated cases."""
    from review.users import UserFile

    if password_stdin:
        password = sys.stdin.readline().rstrip("\n")
    else:
        password = click.prompt("password", hide_input=True, confirmation_prompt=True)
    users = UserFile(load_settings().desk_users_file)
    users.put(name, role, password)
    click.echo(f"{name} ({role}) is in {users.path}")


@desk.command("remove-user")
@click.argument("name")
def remove_user(name: str) -> None:
    """Remove a user; running logins of that user end at once."""
    from review.users import UserFile

    users = UserFile(load_settings().desk_users_file)
    if not users.remove(name):
        raise ConfigurationError(f"{users.path} has no user {name!r}.")
    click.echo(f"{name} is no longer in {users.path}")


def _history(settings: Settings, metrics: DeskMetrics, health: Health) -> HistoryThread | None:
    """Start to keep the newest payments, where there is a Valkey for them."""
    from review.history import PaymentHistory
    from review.history_consumer import HistoryThread

    kept = settings.desk_history_payments
    if not kept:
        return None
    if settings.valkey_url is None:
        logger.warning(
            "Cases are shown without the payments around them that were approved: "
            "FLAGGER_VALKEY_URL is not set. FLAGGER_DESK_HISTORY_PAYMENTS=0 ends this warning."
        )
        return None
    history = PaymentHistory(settings.valkey_url, kept, settings.desk_history_days)
    return HistoryThread(settings, history, metrics, health)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
