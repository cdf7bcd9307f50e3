"""Our own services beside the embedded servers, as processes: what `flagger up --services` adds."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from deploy.local.server import Server, free_ports, is_answered, is_free
from flagger.settings import Settings
from gateway.keys import KeyFile, new_key
from review.users import UserFile

__all__ = ["SERVICES", "LocalServices", "Service", "first_api_key", "first_user"]

_READY_S = 180.0
"""The first start of all compiles the feature kernels."""
_PASSWORD_BYTES = 12


@dataclass(frozen=True, slots=True)
class Service:
    """How one is started and asked.

    Attributes:
        name: What people call it.
        command: What follows `flagger`; the port follows it.
        port: The one that it has if nobody else does.
        ready: Path that answers 200 once it works.
    """

    name: str
    command: tuple[str, ...]
    port: int
    ready: str


SERVICES = (
    Service("streamer", ("stream", "--metrics-port"), 9101, "readyz"),
    Service("gateway", ("gateway", "--port"), 8080, "readyz"),
    Service("desk consumer", ("desk", "consume", "--metrics-port"), 9104, "readyz"),
    Service("desk", ("desk", "serve", "--port"), 8501, "healthz"),
)


class LocalServices:
    """Starts, waits for and stops them; a context manager within the one of the servers.

    They run in the current folder and find the servers, users and API keys there, as the same
    commands in a terminal do.

    Args:
        logs: Folder of their logs.
        on_step: Told what happens, for a person who waits.

    Attributes:
        urls: Name -> where it is.
    """

    def __init__(self, logs: Path, on_step: Callable[[str], None] = lambda _: None) -> None:
        self._logs = logs
        self._on_step = on_step
        self._servers: dict[str, Server] = {}
        self.urls: dict[str, str] = {}

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {name: server.pid for name, server in self._servers.items()}

    def __enter__(self) -> Self:
        try:
            for service in SERVICES:
                self._start(service)
            for service in SERVICES:
                url = f"{self.urls[service.name]}/{service.ready}"
                self._servers[service.name].wait_until(partial(is_answered, url), _READY_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def require_running(self) -> None:
        """Raise StackError with the end of its log if one has ended."""
        for server in self._servers.values():
            server.require_running()

    def _start(self, service: Service) -> None:
        self._on_step(f"starting {service.name}")
        port = service.port if is_free(service.port) else free_ports(1)[0]
        command = [sys.executable, "-m", "flagger", *service.command, str(port)]
        log = self._logs / f"{service.name.replace(' ', '-')}.log"
        self._servers[service.name] = Server(service.name, command, log)
        self.urls[service.name] = f"http://127.0.0.1:{port}"

    def _stop(self) -> None:
        servers, self._servers = list(self._servers.values()), {}
        if servers:
            with ThreadPoolExecutor(len(servers)) as pool:
                list(pool.map(Server.stop, servers))


def first_api_key(settings: Settings) -> str | None:
    """Make an API key where the gateway would not start for want of one; return it, or None.

    Nobody can read it again: it is to be shown.
    """
    keys = KeyFile.open(settings.gateway_keys_file)
    if keys.keys or settings.gateway_jwt_jwks or settings.gateway_auth == "off":
        return None
    key, text = new_key("local", ("score", "feedback"), time.time_ns() // 1_000_000)
    keys.put(key)
    return text


def first_user(settings: Settings) -> tuple[str, str] | None:
    """Make a lead where the desk would not start for want of a user; return name and password.

    None: there are users. Nobody can read the password again: it is to be shown.
    """
    users = UserFile(settings.desk_users_file)
    if users.all():
        return None
    name, password = "lead", secrets.token_urlsafe(_PASSWORD_BYTES)
    users.put(name, "lead", password)
    return name, password
