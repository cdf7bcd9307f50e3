"""Command-line options that the commands of models share."""

from __future__ import annotations

import click

__all__ = ["serving_triton_option"]

serving_triton_option = click.option(
    "--triton",
    "triton_url",
    metavar="HOST:PORT",
    help="gRPC address of the Triton that must serve the version. Default: FLAGGER_TRITON_URL, or "
    "the one of `flagger up`, or none.",
)
