"""The gateway's metrics: every name, unit and meaning in one list, and the objects behind it.

Each process has its own registry and serves it on its own port: one worker per process, so that
counters never jump between workers. Percentiles come from the histograms' buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

from flagger.instruments import SCORE_BUCKETS, show_process
from flagger.policy import DECISIONS as DECISION_WORDS

__all__ = ["METRICS", "STAGES", "GatewayMetrics", "MetricSpec"]

STAGES = ("read", "parse", "state", "features", "model", "explain", "claim", "log", "mark")
"""The stages of a request in their order; a repeat skips features, model and claim."""

_REQUEST_BUCKETS_S = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.010, 0.015, 0.020, 0.030),
    *(0.040, 0.050, 0.060, 0.070, 0.080, 0.090, 0.100, 0.125, 0.150, 0.200),
)
"""1 to 200 ms, dense below the 100 ms that a payment waits at most."""
_STAGE_BUCKETS_S = (
    *(0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005),
    *(0.010, 0.020, 0.030, 0.050, 0.070, 0.100),
)


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: As scraped; counters end with `_total`.
        kind: Prometheus type.
        unit: Of the value; empty for plain numbers.
        meaning: One sentence.
        labels: Names of the labels.
        buckets: Upper bounds, for histograms.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


REQUEST_SECONDS = MetricSpec(
    "flagger_gateway_request_seconds",
    "histogram",
    "seconds",
    "From a scoring request's arrival to its answer; outcome is decided, replayed or problem.",
    ("outcome",),
    _REQUEST_BUCKETS_S,
)
STAGE_SECONDS = MetricSpec(
    "flagger_gateway_stage_seconds",
    "histogram",
    "seconds",
    "Time of one stage of a request.",
    ("stage",),
    _STAGE_BUCKETS_S,
)
DECISIONS = MetricSpec(
    "flagger_gateway_decisions_total",
    "counter",
    "",
    "Decisions made and in the log; repeats are not counted.",
    ("decision", "decision_source"),
)
SCORE = MetricSpec(
    "flagger_gateway_score",
    "histogram",
    "",
    "Scores of what was decided here by a model; repeats are not counted.",
    buckets=SCORE_BUCKETS,
)
ERRORS = MetricSpec(
    "flagger_gateway_errors_total",
    "counter",
    "",
    "Errors by kind: problems told to the caller, and faults that a decision was made in spite of.",
    ("kind",),
)
IN_FLIGHT = MetricSpec(
    "flagger_gateway_requests_in_flight", "gauge", "", "Scoring requests being worked on."
)
RESPONSES = MetricSpec(
    "flagger_gateway_responses_total",
    "counter",
    "",
    "Answers by route (without ids) and HTTP status.",
    ("route", "status"),
)
BREAKER_OPEN = MetricSpec(
    "flagger_gateway_breaker_open",
    "gauge",
    "",
    "1 while a service is left alone because it did not answer: kafka, triton or valkey.",
    ("service",),
)
MODEL_INFO = MetricSpec(
    "flagger_gateway_model_info",
    "gauge",
    "",
    "1 for the model version that is asked now.",
    ("model", "version"),
)

BRAKED = MetricSpec(
    "flagger_gateway_braked_total", "counter", "", "Declines that the brakes turned into reviews."
)
BRAKE_ENGAGED = MetricSpec(
    "flagger_gateway_brake_engaged",
    "gauge",
    "",
    "1 while too many decisions are declines (decline), or reviews and declines (flag).",
    ("cap",),
)

RULEBOOK_REFUSED = MetricSpec(
    "flagger_gateway_rulebook_refused",
    "gauge",
    "",
    "1 while the file of lists and rules is refused as it is now; those before stay in force.",
)

CANARY_DECISIONS = MetricSpec(
    "flagger_gateway_canary_decisions_total",
    "counter",
    "",
    "Decisions of the models while a canary is on; group is live or candidate.",
    ("group", "decision"),
)
CANARY_FAILURES = MetricSpec(
    "flagger_gateway_canary_failures_total",
    "counter",
    "",
    "Requests that the canary failed or answered too late; the live version decided.",
)
CANARY_STOPPED = MetricSpec(
    "flagger_gateway_canary_stopped_total", "counter", "", "Canaries that stopped by themselves."
)

SHADOW_SKIPS = ("busy", "canary", "failed", "rate", "refused")
"""Too many rows under way; the candidate decided itself; no answer in time, or Triton refused;
more rows a second than allowed; a version that cannot be used here, the log says why."""
SHADOW_DECISIONS = MetricSpec(
    "flagger_gateway_shadow_decisions_total",
    "counter",
    "",
    "What the live version and the shadow want, for each decision that was compared.",
    ("live", "shadow"),
)
SHADOW_SKIPPED = MetricSpec(
    "flagger_gateway_shadow_skipped_total",
    "counter",
    "",
    "Decisions of a model that were not compared with the shadow's while there was one.",
    ("reason",),
)

METRICS = (
    *(REQUEST_SECONDS, STAGE_SECONDS, DECISIONS, SCORE, ERRORS, RESPONSES),
    *(IN_FLIGHT, BREAKER_OPEN, MODEL_INFO, BRAKED, BRAKE_ENGAGED, RULEBOOK_REFUSED),
    *(CANARY_DECISIONS, CANARY_FAILURES, CANARY_STOPPED, SHADOW_DECISIONS, SHADOW_SKIPPED),
)


class GatewayMetrics:
    """The metrics of one gateway process, in a registry of their own."""

    def __init__(self) -> None:
        # A `_created` series beside each counter and histogram tells nobody anything.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        show_process(self.registry)
        request = cast("Histogram", self._make(REQUEST_SECONDS))
        stage = cast("Histogram", self._make(STAGE_SECONDS))
        # Looked up once: finding a labelled child takes longer than observing.
        self.request_seconds = {
            outcome: request.labels(outcome) for outcome in ("decided", "replayed", "problem")
        }
        self.stage_seconds = {name: stage.labels(name) for name in STAGES}
        self._decisions = cast("Counter", self._make(DECISIONS))
        self._score = cast("Histogram", self._make(SCORE))
        self.errors = cast("Counter", self._make(ERRORS))
        self.in_flight = cast("Gauge", self._make(IN_FLIGHT))
        self.responses = cast("Counter", self._make(RESPONSES))
        self.breaker_open = cast("Gauge", self._make(BREAKER_OPEN))
        self.braked = cast("Counter", self._make(BRAKED))
        self.brake_engaged = cast("Gauge", self._make(BRAKE_ENGAGED))
        self.rulebook_refused = cast("Gauge", self._make(RULEBOOK_REFUSED))
        self.canary_decisions = cast("Counter", self._make(CANARY_DECISIONS))
        for group in ("live", "candidate"):  # from 0 on: rate() misses a series' first value
            for decision in DECISION_WORDS:
                self.canary_decisions.labels(group, decision)
        self.canary_failures = cast("Counter", self._make(CANARY_FAILURES))
        self.canary_stopped = cast("Counter", self._make(CANARY_STOPPED))
        self.shadow_decisions = cast("Counter", self._make(SHADOW_DECISIONS))
        for live, shadow in product(DECISION_WORDS, repeat=2):
            self.shadow_decisions.labels(live, shadow)
        self.shadow_skipped = cast("Counter", self._make(SHADOW_SKIPPED))
        for reason in SHADOW_SKIPS:
            self.shadow_skipped.labels(reason)
        self._model_info = cast("Gauge", self._make(MODEL_INFO))

    def count_decision(self, decision: str, decision_source: str, score: float | None) -> None:
        """Count a decision that is in the log; `score` is None where no model was asked."""
        self._decisions.labels(decision, decision_source).inc()
        if score is not None:
            self._score.observe(score)

    def count_error(self, kind: str) -> None:
        """Count a fault by its kind."""
        self.errors.labels(kind).inc()

    def set_model(self, model: str, version: str) -> None:
        """Show which model version is asked from now on."""
        self._model_info.clear()
        self._model_info.labels(model, version).set(1)

    def _make(self, spec: MetricSpec) -> Counter | Gauge | Histogram:
        if spec.kind == "histogram":
            return Histogram(
                spec.name,
                spec.meaning,
                spec.labels,
                buckets=spec.buckets,
                registry=self.registry,
            )
        kind = Counter if spec.kind == "counter" else Gauge
        return kind(spec.name, spec.meaning, spec.labels, registry=self.registry)
