"""Command-line options that `flagger train` and `flagger evaluate` share."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["columns_option", "data_option", "label_delay_option"]

data_option = click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="Parquet or CSV file of transactions with outcomes.",
)
columns_option = click.option(
    "--columns",
    type=click.Path(path_type=Path),
    help="TOML file that names the columns of another layout.",
)
label_delay_option = click.option(
    "--label-delay-days",
    type=click.IntRange(0, 7),
    default=7,
    show_default=True,
    help="Days until fraud is known.",
)
