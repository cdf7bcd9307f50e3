"""`flagger gateway`: serve the HTTP door."""

from __future__ import annotations

import signal

import click
import uvicorn

from flagger.addresses import resolve_settings
from gateway.app import create_app

__all__ = ["gateway"]

SHUTDOWN_TIMEOUT_S = 10
"""How long running requests may take to finish after SIGTERM; each has a deadline far below."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535))
def gateway(host: str, port: int) -> None:
    """Serve synchronous scoring over HTTP until Ctrl-C.

    POST /v1/score decides one transaction; /openapi.json documents it. /healthz, /readyz and
    /metrics are for the orchestrator. One process serves one port: for more throughput run more
    of them behind a load balancer.
    """
    # uvicorn raises the signal again once it has shut down; a stop on request is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run(
        create_app(resolve_settings()),
        host=host,
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S,
    )
