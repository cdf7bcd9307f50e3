"""The server process: uvicorn, with a drain between SIGTERM and the end."""

from __future__ import annotations

import signal
import ssl
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from flagger.settings import Settings
from gateway.connection import KEEP_ALIVE_S, Connection

__all__ = ["DrainingServer", "server_config"]

SHUTDOWN_TIMEOUT_S = 10
"""How long running requests may take to finish at the end; each has a deadline far below."""
BACKLOG = 512
"""Most connections that wait to be accepted."""


class DrainingServer(uvicorn.Server):
    """Goes on answering for `drain_s` after SIGTERM, not ready, then ends.

    A balancer needs a moment to learn that this process is going; what it sends meanwhile is
    answered, with `Connection: close`, so that no caller keeps a connection that is about to end.

    Args:
        config: uvicorn's.
        drain_s: Seconds; a second signal, or Ctrl-C, ends it at once.
    """

    def __init__(self, config: uvicorn.Config, drain_s: float) -> None:
        super().__init__(config)
        self._drain_s = drain_s
        self._end_s: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain on the first SIGTERM."""
        if sig != signal.SIGTERM or self._drain_s == 0 or self._end_s is not None:
            super().handle_exit(sig, frame)
            return
        self._end_s = time.monotonic() + self._drain_s
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "door"):
            app.state.door.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Return True once it is time to end."""
        if self._end_s is not None and time.monotonic() >= self._end_s:
            return True
        return await super().on_tick(counter)


def server_config(app: FastAPI, settings: Settings, host: str, port: int) -> uvicorn.Config:
    """Return uvicorn's configuration, with TLS where the settings have a certificate."""
    tls: dict[str, object] = {}
    if settings.gateway_tls_certificate is not None:
        tls = {
            "ssl_certfile": str(settings.gateway_tls_certificate),
            "ssl_keyfile": str(settings.gateway_tls_key),
        }
    if settings.gateway_tls_client_ca is not None:
        tls |= {
            "ssl_ca_certs": str(settings.gateway_tls_client_ca),
            "ssl_cert_reqs": ssl.CERT_REQUIRED,
        }
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=Connection,
        ws="none",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
        **tls,  # type: ignore[arg-type]
    )
