"""Makes the metrics of one service: a common prefix, a registry of its own, the process's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from flagger.health import Health

__all__ = ["SCORE_BUCKETS", "Instruments", "show_waiting"]

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
        ProcessCollector(registry=self.registry)

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


def show_waiting(waiting: Gauge, health: Health, parts: Iterable[str]) -> None:
    """Have a gauge with the label `part` say what a service waits for when it is asked."""
    for part in parts:
        waiting.labels(part).set_function(partial(health.is_waiting_for, part))
