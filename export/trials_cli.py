"""`flagger models shadow` and `flagger models canary`: try a candidate beside the live version."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from export.cli import running_triton
from export.options import serving_triton_option
from export.server import ModelServer
from flagger.canary import MAX_SHARE
from flagger.models import load_version
from flagger.options import repository_option, why_option
from flagger.settings import load_settings
from flagger.trials import set_canary, set_shadow

__all__ = ["canary", "shadow"]

_OFF = click.option("--off", is_flag=True, help="End it.")


@click.command()
@click.argument("version", required=False)
@_OFF
@repository_option
@serving_triton_option
@why_option
def shadow(
    version: str | None, off: bool, repository: Path | None, triton_url: str | None, why: str
) -> None:
    """Have VERSION score a sample of the live traffic; it decides nothing.

    The streamers' metrics compare it with the live version. Publishing or rolling back ends it.
    """
    repository = _checked(version, off, repository, triton_url)
    set_shadow(repository, version, why=why)
    click.echo("no shadow" if off else f"version {version} is the shadow")


@click.command()
@click.argument("version", required=False)
@click.option(
    "--share",
    type=click.FloatRange(0, MAX_SHARE, min_open=True),
    default=0.05,
    show_default=True,
    help="Of the customers, chosen by hash.",
)
@_OFF
@repository_option
@serving_triton_option
@why_option
def canary(
    version: str | None,
    share: float,
    off: bool,
    repository: Path | None,
    triton_url: str | None,
    why: str,
) -> None:
    """Have VERSION decide a share of the customers, at every door.

    It ends by itself when it flags far more or fewer than the live version, fails or is slow.
    Publishing or rolling back ends it, too.
    """
    repository = _checked(version, off, repository, triton_url)
    set_canary(repository, version, share, why=why)
    click.echo("no canary" if off else f"version {version} decides {share:.3g} of the customers")


def _checked(
    version: str | None, off: bool, repository: Path | None, triton_url: str | None
) -> Path:
    """Return the repository; refuse what is no version, or one that Triton does not serve."""
    if off == (version is not None):
        raise click.UsageError("Give either VERSION or --off.")
    settings = load_settings()
    repository = repository or settings.model_repository
    triton_url = triton_url or running_triton(settings, repository)
    if version is not None and triton_url:
        with closing(ModelServer(triton_url)) as server:
            n_features = len(load_version(repository, version).contract.names)
            server.require_ready(version, n_features)
    return repository
