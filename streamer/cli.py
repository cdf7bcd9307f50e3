"""`flagger stream`: run one streamer."""

from __future__ import annotations

import gc

import click

from flagger.addresses import resolve_settings
from flagger.models import live_version, load_version
from flagger.service import log_to_stderr, metrics_options, until_stopped
from streamer.health import Health, serve_health
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline
from streamer.start import wait_for_services

__all__ = ["stream"]

_GC_THRESHOLD = 50_000
"""New objects between two collections of the young ones: a dozen batches' worth."""


@click.command()
@metrics_options(9101)
def stream(metrics_port: int, metrics_host: str) -> None:
    """Score transactions from Kafka, exactly once, until Ctrl-C or SIGTERM.

    Several streamers share the work: give each its own FLAGGER_INSTANCE.
    """
    log_to_stderr()
    settings = resolve_settings()
    repository = settings.model_repository
    model = load_version(repository, live_version(repository))
    keep_going = until_stopped()
    metrics, health = StreamerMetrics(), Health()
    if metrics_port:
        metrics.show_waiting(health)
        metrics.expect_topics_of(settings)
        serve_health(health, metrics.registry, metrics_host, metrics_port)
    wait_for_services(settings, health, keep_going=keep_going)
    if not keep_going():
        return
    click.echo(
        f"streaming {settings.transactions_topic} with {settings.streamer_model} "
        f"version {model.version}; stop with Ctrl-C",
        err=True,
    )
    pipeline = Pipeline(settings, model, metrics, keep_going=keep_going, health=health)
    # What is loaded stays: collections that look through it took 6 % of the main thread's time.
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    pipeline.run()
