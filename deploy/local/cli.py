"""`flagger up`, `status` and `down`: the embedded stack from the command line."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from deploy.local.stack import LocalStack, read_record, stop_recorded
from flagger.addresses import STACK_FILE
from flagger.settings import load_settings

__all__ = ["down", "status", "up"]

_HOME = STACK_FILE.parent
_CHECK_S = 1.0


def _table(addresses: dict[str, Any], pids: dict[str, Any]) -> Table:
    table = Table(title="Embedded stack", title_justify="left")
    for column in ("what", "address"):
        table.add_column(column)
    for name, address in addresses.items():
        if address:
            table.add_row(name, str(address))
    table.add_section()
    for name, pid in pids.items():
        table.add_row(f"{name} process", str(pid))
    return table


@click.command()
@click.option("--fresh", is_flag=True, help="Forget topics and state of earlier runs.")
def up(fresh: bool) -> None:
    """Run Kafka, Triton and Valkey until Ctrl-C; other commands in this folder find them."""
    settings = load_settings()
    console = Console()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    stack = LocalStack(
        _HOME,
        model_repository=settings.model_repository,
        settings=settings,
        fresh=fresh,
        on_step=console.log,
    )
    with stack:
        console.print(_table(_fields(stack), stack.pids))
        console.print(f"logs: {_HOME / 'logs'}; stop with Ctrl-C")
        while not stop.wait(_CHECK_S):
            stack.require_running()


def _fields(stack: LocalStack) -> dict[str, str]:
    return {name: getattr(stack.addresses, name) for name in stack.addresses.__slots__}


@click.command()
def status() -> None:
    """Show the embedded stack of this folder; status 1 if none is recorded."""
    record = read_record(_HOME)
    if record is None:
        click.echo("no embedded stack runs in this folder")
        sys.exit(1)
    pids = {name: identity["pid"] for name, identity in record["processes"].items()}
    Console().print(_table(record["addresses"], pids))


@click.command()
def down() -> None:
    """Stop the embedded stack of this folder."""
    stopped = stop_recorded(Path(_HOME))
    click.echo(f"stopped: {', '.join(stopped) or 'nothing was running'}")
