"""`flagger grafana`: the boards as files, and into a server."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flagger import __version__
from flagger.errors import ConfigurationError
from grafana.generate import DASHBOARDS, boards_as_objects, generate, rendered
from grafana.push import push

__all__ = ["grafana"]


@click.group()
def grafana() -> None:
    """Write the Grafana dashboards to files, or into a Grafana server."""


@grafana.command("generate")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DASHBOARDS,
    help="Folder for the JSON files; other JSON files in it are removed. Default: the committed "
    "ones.",
)
@click.option("--check", is_flag=True, help="Write nothing; status 1 if a file would change.")
def generate_command(out: Path, check: bool) -> None:
    """Write one JSON file for each dashboard."""
    if not check:
        for path in generate(out):
            click.echo(path)
        return
    texts = rendered()
    found = {path.name: path.read_text() for path in out.glob("*.json")}
    for name in sorted(texts.keys() | found.keys()):
        if texts.get(name) != found.get(name):
            click.echo(f"{out / name} differs from the code: run `flagger grafana generate`")
    sys.exit(int(texts != found))


@grafana.command("push")
@click.option("--url", required=True, metavar="URL", help="For example https://grafana.example.")
@click.option(
    "--token-file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with a service account's token (role Editor).",
)
@click.option("--message", default=f"flagger {__version__}", help="For the boards' history.")
def push_command(url: str, token_file: Path, message: str) -> None:
    """Put the dashboards into the folder Fraud Flagger of a Grafana server, over older ones."""
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter("it must begin with http:// or https://", param_hint="--url")
    token = token_file.read_text().strip()
    if not token:
        raise ConfigurationError(f"{token_file} is empty; it must hold a service account's token.")
    for board in push(url, token, boards_as_objects(), message=message):
        click.echo(f"{board.title}: {url.rstrip('/')}{board.url} (version {board.version})")
