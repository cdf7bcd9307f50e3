"""What a service without HTTP of its own waits for: /healthz, /readyz and /metrics.

For the processes that work on Kafka's messages: streamer, review desk, alert channels.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

__all__ = ["STUCK_S", "Health", "serve_health"]

STUCK_S = 120.0
"""A loop that has not come round for so long, and waits for nothing that it knows of, is stuck."""


class Health:
    """Reasons why this service does not do its work right now.

    Args:
        reasons: What it waits for at the start: part -> why.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self, reasons: Mapping[str, str], clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock_s = clock_s
        self._reasons = dict(reasons)
        self._round_s = clock_s()

    def waits(self, part: str, why: str) -> None:
        """Take note that a part keeps the service waiting."""
        self._reasons[part] = why

    def goes_on(self, part: str) -> None:
        """Take note that it does no longer."""
        self._reasons.pop(part, None)

    def came_round(self) -> None:
        """Take note that the loop lives; call it in every round."""
        self._round_s = self._clock_s()

    @property
    def reasons(self) -> dict[str, str]:
        """Part -> why the service waits for it; empty: it works."""
        return dict(self._reasons)

    def is_waiting_for(self, part: str) -> bool:
        """Return True while the service waits for this part."""
        return part in self._reasons

    @property
    def stuck(self) -> bool:
        """True if only a restart can help."""
        return not self._reasons and self._clock_s() - self._round_s > STUCK_S


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a probe a second would fill the log."""


def _application(health: Health, registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/healthz":
            good = not health.stuck
        elif path == "/readyz":
            good = not health.reasons
        elif path == "/metrics":
            found: Iterable[bytes] = metrics(environ, start)
            return found
        else:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There are /metrics, /healthz and /readyz.\n"]
        body = {"status": "ok" if good else "waiting", "waits_for": health.reasons}
        status = "200 OK" if good else "503 Service Unavailable"
        start(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    return answer


def serve_health(health: Health, registry: CollectorRegistry, host: str, port: int) -> None:
    """Answer on host:port in a thread that ends with the process."""
    server = make_server(host, port, _application(health, registry), handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
