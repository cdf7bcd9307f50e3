"""The streamer's metrics: every name, unit and meaning in one place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from flagger.brakes import CAPS, BrakeLimits, Brakes
from flagger.instruments import SCORE_BUCKETS, Instruments, show_waiting
from flagger.live_rulebook import LiveRulebook
from flagger.policy import DECISIONS
from flagger.settings import Settings
from streamer.health import PARTS, Health

__all__ = ["BulkHistogram", "StreamerMetrics"]

Made = TypeVar("Made", covariant=True)

_LATENCY_BUCKETS_S = (
    0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 5,
)  # fmt: skip
"""Made for a budget of 100 ms: half of the bounds lie at or below 40 ms."""
_SHADOW_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_BATCH_BUCKETS_ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


class BulkHistogram(Collector):
    """A histogram that takes whole arrays: one value at a time would cost a tenth of the stream."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = np.array(bounds)
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0

    def observe_all(self, values: npt.NDArray[np.floating[Any]]) -> None:
        """Observe each value; a value on a bound belongs to the bucket below it."""
        places = np.searchsorted(self._bounds, values, side="left")
        self._counts += np.bincount(places, minlength=len(self._counts))
        self._sum += float(values.sum())

    def collect(self) -> Iterable[Metric]:
        """Return the histogram in Prometheus's cumulative form."""
        totals = np.cumsum(self._counts).tolist()
        names = [*(repr(bound) for bound in self._bounds.tolist()), "+Inf"]
        buckets = list(zip(names, map(float, totals), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


@dataclass(frozen=True, slots=True)
class _Declared(Generic[Made]):
    """A metric that each instance of the class has one of, under the same name.

    Attributes:
        make: Returns a new one, in the registry of the instruments.
    """

    make: Callable[[Instruments], Made]

    def __get__(self, instance: object, owner: type) -> Made:  # for an instance its own is found
        raise AttributeError("metrics belong to an instance")


def _counter(name: str, text: str, *labels: str) -> _Declared[Counter]:
    return _Declared(lambda made: made.counter(name, text, *labels))


def _gauge(name: str, text: str, *labels: str) -> _Declared[Gauge]:
    return _Declared(lambda made: made.gauge(name, text, *labels))


def _histogram(name: str, text: str, bounds: Sequence[float]) -> _Declared[Histogram]:
    return _Declared(lambda made: made.histogram(name, text, bounds))


def _bulk_histogram(name: str, text: str, bounds: Sequence[float]) -> _Declared[BulkHistogram]:
    def make(made: Instruments) -> BulkHistogram:
        histogram = BulkHistogram(name, text, bounds)
        made.registry.register(histogram)
        return histogram

    return _Declared(make)


class StreamerMetrics:
    """Counters, gauges and histograms of one streamer."""

    consumed = _counter("consumed", "Messages taken from the transactions topic")
    decided = _counter("decided", "Decisions written", "decision", "decision_source")
    dead_lettered = _counter("dead_lettered", "Messages that can never be decided")
    duplicates = _counter("duplicates", "Repeated transaction ids: no second decision")
    forwarded_repeats = _counter(
        "forwarded_repeats",
        "Gateway decisions on ids that the log held before: the first counts",
    )
    replayed = _counter("replayed", "Messages read again to rebuild state; no output")
    removed_unread = _counter(
        "removed_unread", "Messages that Kafka removed before they were read", "topic"
    )
    late = _counter("late", "Transactions older than their customer's newest one")
    moved = _counter("moved", "Transactions whose customer's last one stood in another partition")
    too_late = _gauge(
        "too_late", "Labels and terminal counts that had already left the terminal's ring"
    )
    unexplained = _counter("unexplained", "Flagged transactions without an explanation")
    braked = _counter("braked", "Declines that the brakes turned into reviews")
    brake_engaged = _gauge("brake_engaged", "1 while a brake is engaged", "cap")
    drift_rows = _counter("drift_rows", "Decided transactions looked at for drift")
    drift_psi = _gauge("drift_psi", "PSI of a column against the test window", "feature")
    drift_ks = _gauge("drift_ks", "Kolmogorov-Smirnov distance of a column", "feature")
    drift_missing = _gauge("drift_missing_share", "Share without a value", "feature")
    drift_unknown = _gauge(
        "drift_unknown_share", "Share of unknown in a categorical field", "field", "kind"
    )
    drift_alarm = _gauge("drift_alarm", "1 while something drifts beyond its limit", "kind")
    model_info = _gauge(
        "model_info", "1 for each version in use: live, shadow, canary", "role", "version"
    )
    shadow_decisions = _counter(
        "shadow_decisions", "What the live version and the shadow want", "live", "shadow"
    )
    shadow_errors = _counter("shadow_errors", "Requests that the shadow did not answer")
    shadow_difference = _bulk_histogram(
        "flagger_streamer_shadow_score_difference",
        "Difference of the shadow's and the live version's scores",
        _SHADOW_BUCKETS,
    )
    canary_decisions = _counter(
        "canary_decisions", "Decisions while a canary is on", "group", "decision"
    )
    canary_failures = _counter("canary_failures", "Requests that the canary failed")
    canary_stopped = _counter("canary_stopped", "Canaries that stopped by themselves")
    rulebook_refused = _gauge(
        "rulebook_refused", "1 while the file of lists and rules is refused as it is now"
    )
    model_errors = _counter("model_errors", "Failed requests to Triton", "kind")
    lag = _gauge("lag_messages", "Messages in the log that are not decided yet")
    event_lag_s = _gauge(
        "event_time_lag_seconds",
        "Age of the newest decided transaction's message while others wait; 0: none waits",
    )
    cpu_wait_share = _gauge(
        "cpu_wait_share",
        "Share of the time in which the stream's thread could run and waited for a core",
    )
    waiting = _gauge("waiting", "1 while the streamer waits for a part", "part")
    held = _gauge("held_messages", "Messages that wait for slower partitions")
    waiting_entries = _gauge(
        "waiting_entries", "Labels and terminal counts read that lie in the stream's future"
    )
    in_flight = _gauge("in_flight_requests", "Requests to Triton under way")
    customers = _gauge("customers", "Customers in memory")
    terminals = _gauge("terminals", "Terminals in memory")
    records_written = _gauge("records_written", "Entity records written to the store")
    records_loaded = _gauge("records_loaded", "Entity records found in the store")
    records_created = _gauge("records_created", "Customers that nobody had seen before")
    customers_evicted = _gauge(
        "customers_evicted", "Customers that left the memory; they are in the store"
    )
    state_bytes = _gauge("state_bytes", "Memory of the entity records, bytes")
    stage_s = _counter("stage_seconds", "Time spent in each stage", "stage")
    latency_s = _bulk_histogram(
        "flagger_streamer_event_to_decision_seconds",
        "From the message's timestamp to its decision, before the commit",
        _LATENCY_BUCKETS_S,
    )
    scores = _bulk_histogram(
        "flagger_streamer_score", "Scores of what was decided here by a model", SCORE_BUCKETS
    )
    commit_s = _histogram("commit_seconds", "Duration of a Kafka commit", _LATENCY_BUCKETS_S)
    batch_rows = _histogram("batch_rows", "Rows per request to Triton", _BATCH_BUCKETS_ROWS)

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        made = Instruments("flagger_streamer", registry)
        self.registry = made.registry
        for name, declared in vars(type(self)).items():
            if isinstance(declared, _Declared):
                setattr(self, name, declared.make(made))
        for word in DECISIONS:  # from 0 on: rate() misses a series' first value
            for group in ("live", "candidate"):
                self.canary_decisions.labels(group, word)
            for other in DECISIONS:
                self.shadow_decisions.labels(word, other)
        for kind in ("unavailable", "refused"):
            self.model_errors.labels(kind)

    def show_waiting(self, health: Health) -> None:
        """Have the gauge say what the streamer waits for at the moment when it is asked."""
        show_waiting(self.waiting, health, PARTS)

    def expect_topics_of(self, settings: Settings) -> None:
        """Show from 0 on what is counted by topic: alerts do not see a series' first value."""
        for log in (settings.transactions_topic, settings.labels_topic, settings.activity_topic):
            self.removed_unread.labels(log)

    def note_removed(self, topic: str, count: int) -> None:
        """Count messages that Kafka removed before they were read."""
        self.removed_unread.labels(topic).inc(count)

    def brakes_of(self, settings: Settings) -> Brakes:
        """Return brakes whose counter and gauge are here."""
        brakes = Brakes(BrakeLimits.of(settings), self.braked.inc)
        for cap in CAPS:
            self.brake_engaged.labels(cap).set_function(partial(brakes.is_engaged, cap))
        return brakes

    def show_rulebook(self, rulebook: LiveRulebook) -> None:
        """Have the gauge say whether the file is refused at the moment when it is asked."""
        self.rulebook_refused.set_function(lambda: bool(rulebook.refusal))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a block to a stage."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self.stage_s.labels(stage).inc(time.perf_counter() - start_s)
