"""`flagger gateway`: serve the HTTP door."""

from __future__ import annotations

import signal
import sys

import click

from flagger.addresses import resolve_settings
from flagger.errors import ConfigurationError
from gateway.app import create_app
from gateway.server import DrainingServer, server_config

__all__ = ["gateway"]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535))
def gateway(host: str, port: int) -> None:
    """Serve synchronous scoring over HTTP until Ctrl-C.

    POST /v1/score decides one transaction; /openapi.json documents everything. Callers need an API
    key (`flagger keys create`). /healthz, /readyz and
    /metrics are for the orchestrator. One process serves one port: for more throughput run more
    of them behind a load balancer.
    """
    # uvicorn raises the signal again once it has shut down; a stop on request is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    settings = resolve_settings()
    app = create_app(settings)
    server = DrainingServer(
        server_config(app, settings, host, port), settings.gateway_drain_ms / 1000
    )
    server.run()
    failure: ConfigurationError | None = app.state.failure
    if failure is not None:
        raise failure
    if not server.started:
        sys.exit(1)
