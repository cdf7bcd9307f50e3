"""`flagger dead-letters`: list, show and send again what could not be decided."""

from __future__ import annotations

import sys
from collections import deque

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flagger.addresses import resolve_settings
from streamer.dead_letters import find_dead_letters, mark_sent, plain, read_dead_letters, send_again

__all__ = ["dead_letters"]


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at what could not be decided, and send it again once the cause is gone."""


@dead_letters.command("list")
@click.option("--last", default=50, show_default=True, type=click.IntRange(min=1))
def list_(last: int) -> None:
    """List the newest dead letters with their reasons; contents are not shown."""
    found = deque(read_dead_letters(resolve_settings()), maxlen=last)
    table = Table(title=f"the last {len(found)} dead letters", title_justify="left")
    table.add_column("offset", justify="right", no_wrap=True)
    table.add_column("written", no_wrap=True)
    table.add_column("from", no_wrap=True)
    table.add_column("reason", overflow="fold")
    for letter in found:
        written = letter.at.isoformat(sep=" ", timespec="seconds")
        reason = letter.headers.get("reason", "none given")[:200]
        # As text: what a sender wrote is neither markup nor a command to the terminal.
        table.add_row(
            str(letter.offset), written, *(Text(plain(t)) for t in (letter.source, reason))
        )
    Console().print(table)


@dead_letters.command()
@click.argument("offset", type=click.IntRange(min=0))
def show(offset: int) -> None:
    """Show one dead letter whole. It may hold a customer's data."""
    (letter,) = find_dead_letters(resolve_settings(), [offset])
    for name, value in letter.headers.items():
        click.echo(f"{name}: {plain(value)}")
    click.echo(f"bytes here: {len(letter.value)}")
    to_terminal = sys.stdout.isatty()
    click.echo(plain(letter.value.decode(errors="replace")) if to_terminal else letter.value)


@dead_letters.command()
@click.argument("offsets", nargs=-1, type=click.IntRange(min=0))
@click.option("--all", "everything", is_flag=True, help="All since the last --all.")
def replay(offsets: tuple[int, ...], everything: bool) -> None:
    """Send dead letters again to where they came from; those still bad come back."""
    if bool(offsets) == everything:
        raise click.UsageError("Give offsets, or --all.")
    settings = resolve_settings()
    found = (
        list(read_dead_letters(settings, unsent=True))
        if everything
        else find_dead_letters(settings, offsets)
    )
    letters = [letter for letter in found if not (everything and letter.obstacle)]
    click.echo(f"sent again: {send_again(settings, letters)}")
    if everything:
        mark_sent(settings, found)
    if len(letters) < len(found):
        click.echo(f"left out, not whole or without a source: {len(found) - len(letters)}")
