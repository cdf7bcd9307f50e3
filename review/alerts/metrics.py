"""The alert service's metrics: every name, unit and meaning in one place."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from flagger.instruments import Instruments

__all__ = ["AlertMetrics"]

_DELIVERY_BUCKETS_S = (
    *(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30),
    *(60, 300, 900, 3_600, 14_400),
)
"""Dense below the second that a first message may take, then minutes of digests and outages."""


class AlertMetrics:
    """Counters, gauges and histograms of one alert service."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        made = Instruments("flagger_alerts", registry)
        counter, gauge = made.counter, made.gauge
        self.registry = made.registry
        self.consumed = counter("consumed", "Messages taken from the alerts topic")
        self.unreadable = counter("unreadable", "Messages that are no alert; they are passed over")
        self.unmatched = counter("unmatched", "Alerts that no rule sends to anybody")
        self.delivered = counter("delivered", "Alerts told, alone or in a digest", "receiver")
        self.messages = counter("messages", "Messages that a receiver has taken", "receiver")
        self.failures = counter("failures", "Attempts that failed", "receiver")
        self.commit_failures = counter("commit_failures", "Offsets that Kafka did not take")
        self.heartbeat_failures = counter("heartbeat_failures", "Heartbeats that were not answered")
        self.dropped_notices = counter(
            "dropped_notices", "Messages about the service itself that gave way to newer ones"
        )
        self.waiting = gauge("waiting", "Alerts that wait for their message", "receiver")
        self.oldest_s = gauge(
            "oldest_waiting_seconds",
            "Time since the transaction of the oldest alert that waits; 0: none",
            "receiver",
        )
        self.failing = gauge("receiver_failing", "1 while a receiver takes nothing", "receiver")
        self.silent = gauge("silent", "1 while no decisions are made, where that is watched")
        self.delivery_s = made.histogram(
            "delivery_seconds",
            "From the transaction's message to the receiver's yes",
            _DELIVERY_BUCKETS_S,
            "receiver",
        )
