"""Command-line options that training commands share, and those of the Dask cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = [
    "columns_option",
    "data_option",
    "engine_options",
    "label_delay_option",
    "trees_option",
]

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
trees_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A setting of the trees, such as max_depth=5; may be given several times.",
)
_ENGINE_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "dask"]),
        default="local",
        show_default=True,
        help="dask: for more data than this machine's memory holds; --data may be a folder then.",
    ),
    click.option(
        "--dask-scheduler",
        metavar="ADDRESS",
        help="A running cluster, tcp://host:8786, that shares --data and --out [none: start one].",
    ),
    click.option(
        "--dask-workers",
        type=click.IntRange(1, 256),
        default=2,
        show_default=True,
        help="Processes on this machine, if no cluster is named.",
    ),
    click.option(
        "--dask-memory",
        default="auto",
        show_default=True,
        help="Memory of each, for example '4 GiB'; auto: an equal part of the machine's.",
    ),
    click.option(
        "--dask-partition-rows",
        type=click.IntRange(1_000),
        default=1_000_000,
        show_default=True,
        help="Transactions that a worker works on at a time, about 500 bytes each.",
    ),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add where a training runs: `engine` and the four `dask_` parameters."""
    for option in reversed(_ENGINE_OPTIONS):
        command = option(command)
    return command
