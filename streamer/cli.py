"""`flagger stream`: run one streamer."""

from __future__ import annotations

import gc
import logging
import signal
from types import FrameType

import click

from flagger.addresses import resolve_settings
from flagger.models import live_version, load_version
from streamer.health import Health, serve_health
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline
from streamer.topics import ensure_topics

__all__ = ["stream"]

_GC_THRESHOLD = 50_000
"""New objects between two collections of the young ones: a dozen batches' worth."""


@click.command()
@click.option(
    "--metrics-port",
    type=int,
    default=9101,
    show_default=True,
    help="Of /metrics, /healthz, /readyz. 0: none.",
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True)
def stream(metrics_port: int, metrics_host: str) -> None:
    """Score transactions from Kafka, exactly once, until Ctrl-C or SIGTERM.

    Several streamers share the work: give each its own FLAGGER_INSTANCE.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    settings = resolve_settings()
    repository = settings.model_repository
    model = load_version(repository, live_version(repository))
    ensure_topics(settings)
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    metrics, health = StreamerMetrics(), Health()
    if metrics_port:
        serve_health(health, metrics.registry, metrics_host, metrics_port)
    click.echo(
        f"streaming {settings.transactions_topic} with {settings.streamer_model} "
        f"version {model.version}; stop with Ctrl-C",
        err=True,
    )
    pipeline = Pipeline(settings, model, metrics, keep_going=lambda: not stopping, health=health)
    # What is loaded stays: collections that look through it took 6 % of the main thread's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    pipeline.run()
