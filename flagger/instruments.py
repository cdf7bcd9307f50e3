"""Makes the metrics of one service: a common prefix, a registry, what is known of the process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from flagger import __version__
from flagger.health import Health
from flagger.settings import ENV_PREFIX

__all__ = ["SCORE_BUCKETS", "Instruments", "show_process", "show_waiting"]

SCORE_BUCKETS = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
    *(0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
)
"""For scores, 0 to 1, of both doors: most payments are near 0, thresholds lie above."""


class Instruments:
    """A registry and what is put into it.

    Args:
        prefix: In front of every name, for example `flagger_desk`.
        registry: Where the metrics go; None: one of its own.

    Attributes:
        registry: What a metrics page shows.
    """

    def __init__(self, prefix: str, registry: CollectorRegistry | None = None) -> None:
        self._prefix = prefix
        self.registry = registry or CollectorRegistry()
        show_process(self.registry)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Return a counter; `_total` is added to its name."""
        return Counter(f"{self._prefix}_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Return a gauge."""
        return Gauge(f"{self._prefix}_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        """Return a histogram with these upper bounds."""
        name = f"{self._prefix}_{name}"
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)


def show_process(registry: CollectorRegistry) -> None:
    """Add what every service shows: CPU and memory of the process, and which build it is.

    Boards mark deploys where `flagger_build_info` gets another version or revision.
    """
    ProcessCollector(registry=registry)
    # Metrics are made without settings; `Settings.revision` has its words and allows the name.
    revision = os.environ.get(f"{ENV_PREFIX}REVISION") or "unknown"
    build = Info("flagger_build", "1, with the build of this process as labels", registry=registry)
    build.info({"version": __version__, "revision": revision})


def show_waiting(waiting: Gauge, health: Health, parts: Iterable[str]) -> None:
    """Have a gauge with the label `part` say what a service waits for when it is asked."""
    for part in parts:
        waiting.labels(part).set_function(partial(health.is_waiting_for, part))
