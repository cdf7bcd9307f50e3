"""`flagger up`, `status` and `down`: the embedded stack from the command line."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from types import FrameType
from typing import NoReturn

import click
from rich.console import Console
from rich.table import Table

from deploy.local.record import is_alive, read_record, stop_recorded, write_record
from deploy.local.services import LocalServices, first_api_key, first_user
from deploy.local.stack import LocalStack
from flagger.addresses import STACK_FILE
from flagger.settings import Settings, load_settings

__all__ = ["down", "status", "up"]

_HOME = STACK_FILE.parent
_CHECK_S = 1.0
_FIRST_STEPS = """In another terminal, in this folder:
  flagger produce --data FILE --rate 100    payments; `flagger simulate` makes some"""


def _table(addresses: Mapping[str, str], processes: Mapping[str, str]) -> Table:
    table = Table(title="Embedded stack", title_justify="left")
    for column in ("what", "where"):
        table.add_column(column)
    for name, address in addresses.items():
        if address:
            table.add_row(name, address)
    table.add_section()
    for name, process in processes.items():
        table.add_row(f"{name} process", process)
    return table


def _make_first_access(settings: Settings, console: Console) -> None:
    """Make an API key and a user of the desk where there are none, and show them."""
    if (api_key := first_api_key(settings)) is not None:
        console.print(f"API key of the gateway, shown this once: {api_key}", soft_wrap=True)
    if (user := first_user(settings)) is not None:
        name, password = user
        text = f"user of the desk, shown this once: {name}, password {password}"
        console.print(text, soft_wrap=True, markup=False)


@click.command()
@click.option("--fresh", is_flag=True, help="Forget topics and state of earlier runs.")
@click.option(
    "--services",
    "with_services",
    is_flag=True,
    help="Run a streamer, the gateway and the desk too.",
)
def up(fresh: bool, with_services: bool) -> None:
    """Run Kafka, Triton and Valkey until Ctrl-C; other commands in this folder find them."""
    settings = load_settings()
    console = Console()
    stopping = False

    def stop(_number: int, _frame: FrameType | None) -> NoReturn:
        # Python drops what is raised within a finalizer: the flag ends the loop all the same.
        nonlocal stopping
        stopping = True
        raise KeyboardInterrupt

    # `flagger down` ends this process by SIGTERM, as Ctrl-C does: also while it still starts.
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    stack = LocalStack(
        _HOME,
        model_repository=settings.model_repository,
        settings=settings,
        fresh=fresh,
        on_step=console.log,
    )
    try:
        with stack, ExitStack() as beside:
            addresses, pids = asdict(stack.addresses), stack.pids
            parts: list[LocalStack | LocalServices] = [stack]
            if with_services:
                _make_first_access(settings, console)
                services = beside.enter_context(LocalServices(_HOME / "logs", console.log))
                addresses |= services.urls
                pids |= services.pids
                parts.append(services)
                write_record(_HOME, stack.addresses, pids)
            console.print(_table(addresses, {name: str(pid) for name, pid in pids.items()}))
            if with_services:
                console.print(_FIRST_STEPS)
            console.print(f"logs: {_HOME / 'logs'}; stop with Ctrl-C")
            while not stopping:
                time.sleep(_CHECK_S)
                for part in parts:
                    part.require_running()
        console.log("stopped")
    except KeyboardInterrupt:
        console.log("stopped")


@click.command()
def status() -> None:
    """Show the embedded stack of this folder; status 1 unless all of it runs."""
    record = read_record(_HOME)
    if record is None:
        click.echo("no embedded stack runs in this folder")
        sys.exit(1)
    identities = {"flagger up": record["owner"], **record["processes"]}
    ended = [name for name, identity in identities.items() if not is_alive(identity)]
    processes = {
        name: "ended" if name in ended else str(identity["pid"])
        for name, identity in identities.items()
    }
    Console().print(_table(record["addresses"], processes))
    if ended:
        click.echo("it did not end well; `flagger down` clears up, `flagger up` starts it again")
        sys.exit(1)


@click.command()
def down() -> None:
    """Stop the embedded stack of this folder."""
    stopped = stop_recorded(_HOME)
    click.echo(f"stopped: {', '.join(stopped) or 'nothing was running'}")
