"""`flagger keys`: make, list and revoke API keys of the gateway."""

from __future__ import annotations

import getpass
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import click
import msgspec
from rich.console import Console
from rich.table import Table

from flagger.errors import ConfigurationError
from flagger.settings import load_settings
from gateway.audit import AuditLog
from gateway.keys import SCOPES, KeyFile, Scope, new_key

__all__ = ["keys"]

_DAY_MS = 24 * 3_600_000

_file_option = click.option(
    "--file", "path", type=click.Path(dir_okay=False, path_type=Path),
    help="File of the keys. Default: FLAGGER_GATEWAY_KEYS_FILE.",
)  # fmt: skip


def _open(path: Path | None) -> tuple[KeyFile, AuditLog]:
    file = KeyFile.open(path or load_settings().gateway_keys_file)
    return file, AuditLog(file.path.with_name(f"{file.path.name}.audit.jsonl"))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@click.group()
def keys() -> None:
    """Make, list and revoke the gateway's API keys.

    The file holds hashes. Gateways follow it within about a second. What is done here is written
    to <file>.audit.jsonl.
    """


@keys.command()
@click.argument("name")
@click.option(
    "--scope", "scopes", multiple=True, type=click.Choice(SCOPES), default=("score",),
    show_default=True, help="What it may do; may be repeated. admin may do everything.",
)  # fmt: skip
@click.option(
    "--expires-days", default=365.0, show_default=True, type=click.FloatRange(min=0),
    help="Days until it is refused; 0: never.",
)  # fmt: skip
@click.option(
    "--rate", type=click.FloatRange(min=0.1),
    help="Requests per second over all gateways. Default: no limit.",
)  # fmt: skip
@_file_option
def create(
    name: str,
    scopes: tuple[str, ...],
    expires_days: float,
    rate: float | None,
    path: Path | None,
) -> None:
    """Make a key for NAME and print it; it can not be shown again."""
    file, audit = _open(path)
    now_ms = _now_ms()
    expires_ms = now_ms + int(expires_days * _DAY_MS) if expires_days else None
    chosen = cast("tuple[Scope, ...]", scopes)
    key, text = new_key(name, chosen, now_ms, expires_ms=expires_ms, rate_per_s=rate)
    file.put(key)
    audit.write("key.create", getpass.getuser(), key=key.id, name=name, scopes=list(scopes))
    click.echo(text)


@keys.command("list")
@_file_option
def list_keys(path: Path | None) -> None:
    """Show the keys, without their secrets."""
    file, _ = _open(path)
    table = Table("id", "name", "scopes", "state", "expires (UTC)", "requests/s")
    for key in file.keys:
        expires = "never"
        if key.expires_ms is not None:
            expires = f"{datetime.fromtimestamp(key.expires_ms / 1000, UTC):%Y-%m-%d %H:%M}"
        limit = f"{key.rate_per_s:g}" if key.rate_per_s else "-"
        table.add_row(key.id, key.name, " ".join(key.scopes), key.state(_now_ms()), expires, limit)
    Console().print(table)


@keys.command()
@click.argument("key_id")
@_file_option
def revoke(key_id: str, path: Path | None) -> None:
    """Refuse the key KEY_ID from now on."""
    file, audit = _open(path)
    for key in file.keys:
        if key.id == key_id:
            file.put(msgspec.structs.replace(key, revoked_ms=_now_ms()))
            audit.write("key.revoke", getpass.getuser(), key=key.id, name=key.name)
            click.echo(f"revoked {key.id} of {key.name}")
            return
    raise ConfigurationError(f"{file.path} has no key {key_id!r}; see `flagger keys list`.")
