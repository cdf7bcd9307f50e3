"""`flagger backup` and `flagger restore`: state and cases as a folder of checked files."""

from __future__ import annotations

from pathlib import Path

import click

from deploy.backup import back_up
from deploy.backup_files import Manifest
from deploy.restore import restore
from flagger.addresses import resolve_settings

__all__ = ["backup", "restore_command"]


def _told(manifest: Manifest) -> str:
    counts = manifest.counts
    cases = f", {counts['cases.jsonl']:,} cases" if manifest.case_layout else ", no case store"
    return (
        f"{counts['customers.bin']:,} customers, {counts['terminals.bin']:,} terminals, "
        f"{counts['decisions.msgpack']:,} stored decisions{cases}; complete up to offsets "
        f"{', '.join(f'{p}: {offset:,}' for p, offset in sorted(manifest.marks.items()))}"
    )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def backup(folder: Path) -> None:
    """Write the state in Valkey and the desk's cases to a new FOLDER, while everything runs.

    Kafka, the model repository and the files of keys and users are backed up by their own means.
    """
    click.echo(f"{folder}: {_told(back_up(resolve_settings(), folder))}")


@click.command("restore")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--new-log", is_flag=True, help="Kafka's log is gone too: begin with a new one after this."
)
def restore_command(folder: Path, new_log: bool) -> None:
    """Bring a backup into an empty Valkey database and an empty case store; checks it first.

    Start the streamers afterwards: they read the log from where the backup ends, and write no
    decision twice.
    """
    manifest = restore(resolve_settings(), folder, new_log=new_log)
    click.echo(f"restored {_told(manifest)}, of {manifest.created_at}")
