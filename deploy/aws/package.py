"""The archive that Lambda runs: `python -m deploy.aws.package OUT.zip`.

It holds the few modules that the functions need and the package msgspec, built for Lambda's
processor; boto3 is part of Lambda's Python. The same files give the same bytes, so that Terraform
sees a change only where there is one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import click

from deploy.local.downloads import find_uv
from flagger.errors import ConfigurationError

__all__ = ["MODULES", "build_package"]

ROOT = Path(__file__).parents[2]
MODULES = (
    "deploy/__init__.py",
    "deploy/aws/__init__.py",
    "deploy/aws/events.py",
    "deploy/aws/lambdas.py",
    "flagger/__init__.py",
    "flagger/alert.py",
    "flagger/decision_table.py",
    "flagger/errors.py",
    "flagger/wire/__init__.py",
    "flagger/wire/limits.py",
    "flagger/wire/messages.py",
)
PYTHON = "3.12"
"""Lambda's runtime, as in `terraform/lambda.tf`."""
PLATFORMS = {"arm64": "aarch64-manylinux2014", "x86_64": "x86_64-manylinux2014"}
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o644 << 16
_INSTALL_TIMEOUT_S = 300


def build_package(out: Path, architecture: str = "arm64", *, python: str = PYTHON) -> None:
    """Write the archive.

    Args:
        out: The file; it is replaced.
        architecture: `arm64` or `x86_64`, as the function's `architectures` says.
        python: Version of the function's runtime.

    Raises:
        ConfigurationError: The package could not be fetched.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder)
        _install(target, PLATFORMS[architecture], python)
        files = {
            path.relative_to(target).as_posix(): path
            for path in target.rglob("*")
            if path.is_file() and path.suffix != ".pyc" and path.parent.name != "bin"
        }
        files |= {name: ROOT / name for name in MODULES}
        out.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                # The time and the owner of a file are of this machine; its content is not.
                info = zipfile.ZipInfo(name, _EPOCH)
                info.external_attr = _MODE
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, files[name].read_bytes())


def _install(target: Path, platform: str, python: str) -> None:
    command = [
        *(find_uv(), "pip", "install", "--quiet", "--no-deps", "--target", str(target)),
        *("--python-version", python, "--python-platform", platform, "--only-binary", ":all:"),
        f"msgspec=={version('msgspec')}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S)
    if done.returncode:
        raise ConfigurationError(
            f"The functions' packages could not be fetched: {done.stderr.strip()[-1500:]} Check "
            f"the network and the package index."
        )


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--architecture", type=click.Choice(sorted(PLATFORMS)), default="arm64")
def main(out: Path, architecture: str) -> None:
    """Build the Lambda functions' archive."""
    build_package(out, architecture)
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB for {architecture}", err=True)


if __name__ == "__main__":
    try:
        main()
    except ConfigurationError as problem:
        sys.exit(f"error: {problem}")
