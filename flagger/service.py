"""What the commands of the services on Kafka share: options, log, signals."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

import click

__all__ = ["log_to_stderr", "metrics_options", "until_stopped"]


def metrics_options(port: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds `metrics_port`, with this default, and `metrics_host`."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        host_option = click.option("--metrics-host", default="127.0.0.1", show_default=True)
        port_option = click.option(
            "--metrics-port",
            type=int,
            default=port,
            show_default=True,
            help="Of /metrics, /healthz, /readyz. 0: none.",
        )
        return port_option(host_option(command))

    return add


def log_to_stderr() -> None:
    """Have this process write its log, with times, to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def until_stopped() -> Callable[[], bool]:
    """Take SIGINT and SIGTERM; return what is True until one of them has come."""
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    return lambda: not stopping
