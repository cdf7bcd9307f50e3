"""`flagger health`: one HTTP question, for images that have no curl."""

from __future__ import annotations

import http.client
import sys
from urllib.parse import urlsplit

import click

__all__ = ["health"]

URLS = {
    "streamer": "http://127.0.0.1:9101",
    "gateway": "http://127.0.0.1:8080",
    "alerts": "http://127.0.0.1:9103",
    "desk-consumer": "http://127.0.0.1:9104",
    "labels-watch": "http://127.0.0.1:9105",
    "triton": "http://127.0.0.1:8000",
}
"""Where each service answers by default, inside its own container."""
TRITON_PATHS = {"/healthz": "/v2/health/live", "/readyz": "/v2/models/fraud_fil/ready"}
"""Ready: the scoring entry answers. /v2/health/ready says no as soon as any version was refused."""
_SHOWN_BYTES = 300


@click.command()
@click.argument("service", type=click.Choice(sorted(URLS)))
@click.option("--url", help="Root of the service. Default: its port on this host.")
@click.option("--ready", is_flag=True, help="Ask whether it decides, not only whether it lives.")
@click.option("--timeout-s", default=2.0, show_default=True, type=click.FloatRange(min=0.1))
def health(service: str, url: str | None, ready: bool, timeout_s: float) -> None:
    """Ask a service for its health; status 0 if it is well, 1 if it is not or does not answer."""
    path = "/readyz" if ready else "/healthz"
    if service == "triton":
        path = TRITON_PATHS[path]
    parts = urlsplit(url or URLS[service])
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter("it must be http://host:port or https://", param_hint="--url")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(_SHOWN_BYTES).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"{service}: {parts.geturl()}{path} does not answer: {error}", err=True)
        sys.exit(1)
    finally:
        connection.close()
    click.echo(f"{service}: {answer.status} {body}")
    sys.exit(0 if answer.status == http.client.OK else 1)
