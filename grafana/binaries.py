"""Prometheus's own programs: those of the system, or Debian's packages unpacked, without root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from flagger.compiled import cache_home
from flagger.errors import StackError

__all__ = ["alertmanager_command", "find_binary"]

_PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
}
"""Program -> the Debian package that has it."""
_STEP_TIMEOUT_S = 300


def find_binary(name: str) -> Path:
    """Return a program's path: the one on PATH, or one that is unpacked into the user's cache once.

    Args:
        name: A key of `_PACKAGES`.

    Raises:
        StackError: It is not installed, and Debian's package could not be fetched.
    """
    if on_path := shutil.which(name):
        return Path(on_path)
    package = _PACKAGES[name]
    folder = cache_home() / "debian" / package
    program = folder / "usr" / "bin" / name
    if not program.exists():
        _unpack(package, folder)
    return program


def alertmanager_command() -> list[str]:
    """Return how Alertmanager is started; its arguments follow.

    Debian's reads its templates from /usr/share. Where the package is only unpacked, it starts in
    a mount namespace of its own, in which that folder is the package's: no root is needed, but a
    kernel that gives users namespaces.

    Raises:
        StackError: It is not installed, and cannot be had or started otherwise.
    """
    for name in ("alertmanager", "prometheus-alertmanager"):
        if on_path := shutil.which(name):
            return [on_path]
    program = find_binary("prometheus-alertmanager")
    share = program.parents[1] / "share"
    apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    apart += ['mount --bind "$0" /usr/share && exec "$@"', str(share)]
    try:
        _run([*apart, "true"], share)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise StackError(
            f"Alertmanager is not installed, and Debian's cannot be started unpacked "
            f"({str(said).strip()[-300:]}). Install it: `apt-get install prometheus-alertmanager`."
        ) from error
    return [*apart, str(program)]


def _unpack(package: str, folder: Path) -> None:
    """Fetch a Debian package and unpack it; another process may do the same at the same time."""
    own = folder.with_name(f"{package}.{os.getpid()}")
    shutil.rmtree(own, ignore_errors=True)
    for part in ("lists/partial", "archives/partial", "tree"):
        (own / part).mkdir(parents=True)
    # Lists of our own: the system's may be empty, and only root can fill them.
    apt = ["apt-get", "-q", "-o", f"Dir::State::Lists={own / 'lists'}"]
    apt += ["-o", f"Dir::Cache={own}", "-o", f"Dir::Cache::Archives={own / 'archives'}"]
    apt += ["-o", "APT::Sandbox::User="]  # root's apt would give up its rights to the folder
    try:
        _run([*apt, "update"], own)
        _run([*apt, "download", package], own)
        _run(["dpkg-deb", "-x", str(next(own.glob("*.deb"))), "tree"], own)
        if not (folder / "usr").exists():
            shutil.rmtree(folder, ignore_errors=True)
            (own / "tree").rename(folder)
    except (OSError, StopIteration, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise StackError(
            f"{package} is needed and neither installed nor to be had from Debian's packages "
            f"({str(said).strip()[-500:]}). Install it: `apt-get install {package}` on Debian and "
            f"Ubuntu, or put Prometheus's and Alertmanager's own programs on PATH."
        ) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S
    )
