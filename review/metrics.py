"""The desk's metrics: every name, unit and meaning in one place."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from flagger.health import Health
from flagger.instruments import Instruments, show_waiting
from review.tables import State

__all__ = ["PARTS", "DeskMetrics"]

PARTS = ("alerts", "case_store", "labels", "history")
"""What the desk's consumer may wait for: Kafka's alerts, the database, Kafka for labels, Valkey for
the newest payments."""
_STORED_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60, 300, 3_600)
"""Two seconds is what an analyst is promised; an hour is what it takes after an outage."""


class DeskMetrics:
    """Counters, gauges and histograms of one desk consumer."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        made = Instruments("flagger_desk", registry)
        counter, gauge = made.counter, made.gauge
        self.registry = made.registry
        self.stored = counter("cases_stored", "Flags that became cases")
        self.repeats = counter("repeats", "Flags whose case was there already: nothing changed")
        self.refused = counter(
            "refused", "Messages that are no alert, or that the database cannot hold"
        )
        self.store_errors = counter("store_errors", "Failed calls to the case store")
        self.labels_sent = counter("labels_sent", "Labels that Kafka has acknowledged")
        self.label_errors = counter("label_errors", "Labels that Kafka did not take; tried again")
        self.labels_waiting = gauge("labels_waiting", "Labels that are not sent yet")
        self.expired = counter("claims_expired", "Claims that ran out; the cases are free again")
        self.history_payments = counter(
            "history_payments", "Payments put into the lists of customers and terminals"
        )
        self.history_unreadable = counter(
            "history_unreadable", "Messages of the transactions topic that these lists leave out"
        )
        self.lag = gauge("lag_messages", "Alerts that are not stored yet, of our partitions")
        self.cases = gauge("cases", "Cases in the store", "state")
        self.oldest_new_s = gauge(
            "oldest_new_seconds", "Age of the oldest case that nobody has taken; 0: there is none"
        )
        self.waiting = gauge("waiting", "1 while the consumer waits for a part", "part")
        self.stored_after_s = made.histogram(
            "event_to_case_seconds",
            "From the transaction's message timestamp to its case on disk",
            _STORED_BUCKETS_S,
        )

    def show_waiting(self, health: Health) -> None:
        """Have the gauge say what the consumer waits for at the moment when it is asked."""
        show_waiting(self.waiting, health, PARTS)

    def show_cases(self, counts: dict[str, int]) -> None:
        """Show how many cases are in each state; states that have none show 0."""
        for state in State:
            self.cases.labels(state.value).set(counts.get(state, 0))
