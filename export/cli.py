"""`flagger export`: publish a trained model, or go back to the one before."""

from __future__ import annotations

from pathlib import Path

import click

from export import publish
from export.parity import DEFAULT_ROWS
from flagger.addresses import STACK_FILE, fill_addresses
from flagger.options import repository_option, why_option
from flagger.settings import Settings, load_settings

__all__ = ["export", "running_triton"]


_EXAMPLES = """\b
Examples:
  flagger export runs/march
  flagger export runs/march --triton triton:8001
  flagger export --roll-back
"""


@click.command(epilog=_EXAMPLES)
@click.argument(
    "training_dir",
    required=False,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@repository_option
@click.option(
    "--triton",
    "triton_url",
    metavar="HOST:PORT",
    help="gRPC address of a running Triton on this repository, which loads the version and must "
    "agree before it goes live. Default: FLAGGER_TRITON_URL, or the one of `flagger up`, or none.",
)
@click.option(
    "--keep",
    default=publish.DEFAULT_KEEP,
    show_default=True,
    type=click.IntRange(min=1),
    help="Newest versions that stay in the repository.",
)
@click.option(
    "--parity-rows",
    default=DEFAULT_ROWS,
    show_default=True,
    type=click.IntRange(min=1),
    help="Rows on which the exports must agree with the trained model.",
)
@click.option(
    "--cpu-instances",
    default=1,
    show_default=True,
    type=click.IntRange(min=1),
    help="Executions per scoring entry at the same time, one thread each; two entries share the "
    "server's cores.",
)
@click.option(
    "--candidate",
    is_flag=True,
    help="Leave the live version; `flagger models publish` makes this one live.",
)
@why_option
@click.option("--roll-back", is_flag=True, help="Make the version live that was live before.")
def export(
    training_dir: Path | None,
    repository: Path | None,
    triton_url: str | None,
    keep: int,
    parity_rows: int,
    cpu_instances: int,
    candidate: bool,
    why: str,
    roll_back: bool,
) -> None:
    """Publish the model in TRAINING_DIR (output of `flagger train`) and make it live.

    It is written for Triton's FIL and ONNX Runtime backends, and refused unless they agree with
    the trained model. The streamer and the gateway follow without a restart.
    """
    settings = load_settings()
    repository = repository or settings.model_repository
    if roll_back == (training_dir is not None):
        raise click.UsageError("Give either TRAINING_DIR or --roll-back.")
    if training_dir is None:
        click.echo(f"version {publish.roll_back(repository, why=why)} is live again")
        return
    publish.export_model(
        training_dir,
        repository,
        triton_url=triton_url or running_triton(settings, repository),
        keep=keep,
        n_parity_rows=parity_rows,
        cpu_instances=cpu_instances,
        make_live=not candidate,
        why=why,
        progress=click.echo,
    )


def running_triton(settings: Settings, repository: Path) -> str | None:
    """Return the address in the settings, or of an embedded stack that serves this repository."""
    serves_this = repository.resolve() == settings.model_repository.resolve()
    if serves_this and STACK_FILE.exists():
        return fill_addresses(settings).triton_url
    return settings.triton_url
