"""Traces by OpenTelemetry: from the caller through gateway, Triton and Kafka to the decision.

Off unless `otlp_endpoint` is set. A trace crosses borders as a W3C `traceparent`: header of the
HTTP request, of the gRPC call to Triton, and of the Kafka message. Spans carry no customer data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flagger import __version__
from flagger.settings import Settings

__all__ = ["TRACEPARENT", "Tracing", "trace_headers", "traceparent_of"]

TRACEPARENT: Final = "traceparent"
_MAX_QUEUED_SPANS = 2_048
"""Spans that wait for the collector; more are dropped, and the SDK logs that it drops."""
_EXPORT_TIMEOUT_MS = 5_000
_NS_PER_S = 1_000_000_000
_NS_PER_MS = 1_000_000

_propagator = TraceContextTextMapPropagator()


def trace_headers() -> dict[str, str] | None:
    """Return the headers that continue the trace under way, or None: there is none."""
    span = trace.get_current_span()
    if not span.get_span_context().trace_flags.sampled:
        return None
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


def traceparent_of(headers: Sequence[tuple[str, bytes]] | None) -> str | None:
    """Return the sampled `traceparent` among a Kafka message's headers, if any."""
    for name, value in headers or ():
        if name == TRACEPARENT and isinstance(value, bytes) and value.endswith(b"1"):
            return value.decode("ascii", "replace")
    return None


class Tracing:
    """Makes spans and sends them to the collector in the background.

    Args:
        settings: With `otlp_endpoint`.
        service: Name of this service in the traces.
    """

    def __init__(self, settings: Settings, service: str) -> None:
        # Half a second that nobody pays who has no collector.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: service, SERVICE_VERSION: __version__}),
            sampler=ParentBasedTraceIdRatio(settings.trace_share),
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint}/v1/traces"),
                max_queue_size=_MAX_QUEUED_SPANS,
                export_timeout_millis=_EXPORT_TIMEOUT_MS,
            )
        )
        self._tracer = self._provider.get_tracer("flagger", __version__)

    @classmethod
    def of(cls, settings: Settings, service: str) -> Tracing | None:
        """Return what the settings ask for; None: no traces."""
        return None if settings.otlp_endpoint is None else cls(settings, service)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[trace.Span]:
        """Make everything inside part of one span, which continues the caller's trace if any.

        Of an exception that ends it the span tells the kind alone: a message may hold a customer's
        data, and traces go to others.

        Args:
            name: The span's.
            headers: Of the HTTP request, names in lower case.
        """
        with self._tracer.start_as_current_span(
            name,
            context=_propagator.extract(headers),
            kind=trace.SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield span
            except BaseException as error:
                span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                raise

    def add_stages(self, span: trace.Span, laps_s: Sequence[tuple[str, float]]) -> None:
        """Add a child for each stage that has just ended.

        Args:
            span: The request's; still open.
            laps_s: Stages and seconds, in order; the last one ends now.
        """
        if not span.is_recording():
            return
        parent = trace.set_span_in_context(span)
        total_s = sum(seconds for _, seconds in laps_s)
        start_ns = time.time_ns() - int(total_s * _NS_PER_S)
        for stage, seconds in laps_s:
            child = self._tracer.start_span(stage, context=parent, start_time=start_ns)
            start_ns += int(seconds * _NS_PER_S)
            child.end(start_ns)

    def add_decision(
        self, traceparent: str, start_ms: int, attributes: Mapping[str, str | int]
    ) -> str:
        """Add the span of one decided message; return the `traceparent` that goes on from it.

        Args:
            traceparent: The message's.
            start_ms: The message's timestamp, epoch milliseconds.
            attributes: Of the span.
        """
        span = self._tracer.start_span(
            "decide",
            context=_propagator.extract({TRACEPARENT: traceparent}, context.Context()),
            kind=trace.SpanKind.CONSUMER,
            start_time=start_ms * _NS_PER_MS,
            attributes=dict(attributes),
        )
        span.end()
        headers: dict[str, str] = {}
        _propagator.inject(headers, trace.set_span_in_context(span, context.Context()))
        return headers[TRACEPARENT]

    def close(self) -> None:
        """Send what waits, and stop."""
        self._provider.shutdown()
