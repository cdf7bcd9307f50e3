"""Command-line options that commands of several folders share."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["repository_option", "why_option"]

repository_option = click.option(
    "--repository",
    type=click.Path(file_okay=False, path_type=Path),
    help="Triton's model repository. Default: FLAGGER_MODEL_REPOSITORY, or model_repository.",
)
why_option = click.option("--why", default="", metavar="TEXT", help="The reason, for the audit.")
