"""One trace from the caller through gateway, Triton and Kafka to the decision, at a collector."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import Consumer, Message, Producer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from deploy.local.server import Server, free_ports
from deploy.local.stack import LocalStack
from deploy.local.triton import start_triton, wait_for_triton
from flagger.settings import Settings
from flagger.tracing import Tracing, trace_headers, traceparent_of
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from streamer.topics import ensure_topics

PLANTED = "4111111111111111"
"""A card number in every id: no span, log or metric may tell it."""
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
NOT_SAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"
REFUSED_TRACE = "1bf7651916cd43dd8448eb211c80319c"
STAGES = {"read", "parse", "state", "features", "model", "explain", "claim", "log", "mark"}


class Collector:
    """Takes OTLP over HTTP, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        self.tritons: list[dict[str, Any]] = []
        spans, tritons = self.spans, self.tritons

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    raise AssertionError("not asked for")
                if self.headers["content-type"] == "application/json":  # Triton's way
                    for resource in json.loads(body)["resourceSpans"]:
                        for scope in resource["scopeSpans"]:
                            tritons.extend(scope["spans"])
                    body = b""
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    names = {a.key: a.value.string_value for a in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        spans.extend((names["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Stay quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def payment(name: str) -> bytes:
    now_ms = int(time.time() * 1000)
    ids = {"transaction_id": f"{name}-{PLANTED}", "customer_id": f"c-{name}-{PLANTED}"}
    fields = {"event_time": now_ms, "terminal_id": f"t-{PLANTED}", "amount": 12.5}
    return json.dumps(ids | fields).encode()


def read(settings: Settings, n: int) -> dict[str, Message]:
    """Return n decisions by the name of their payment."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([settings.decisions_topic])
    found: dict[str, Message] = {}
    deadline_s = time.monotonic() + 60
    while len(found) < n and time.monotonic() < deadline_s:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            transaction_id = json.loads(message.value())["transaction_id"]
            found[transaction_id.removesuffix(f"-{PLANTED}")] = message
    consumer.close()
    return found


@pytest.fixture
def triton(stack: LocalStack, collector: Collector, tmp_path: Path) -> Iterator[tuple[Server, str]]:
    """A server of its own, that sends its spans to the collector; and its address."""
    config = {
        "mode": "opentelemetry",
        "opentelemetry,url": f"{collector.url}/v1/traces",
        "level": "TIMESTAMPS",
        "rate": "0",  # only what a caller traces
        "count": "-1",
    }
    options = [f"--trace-config={name}={value}" for name, value in config.items()]
    server, addresses = start_triton(tmp_path / "triton", tmp_path, stack.model_repository, options)
    try:
        wait_for_triton(server, addresses.grpc)
        yield server, addresses.grpc
    finally:
        server.stop()


@pytest.fixture
def settings(stack: LocalStack, triton: tuple[Server, str]) -> Settings:
    name = uuid.uuid4().hex[:8]
    topics = {f"{t}_topic": f"{name}-{t}" for t in ("transactions", "decisions", "alerts")}
    own = {
        "consumer_group": name,
        "valkey_url": stack.addresses.valkey_url.rsplit("/", 1)[0] + "/9",
        "triton_url": triton[1],
    }
    made = stack.settings().model_copy(update={**topics, **own, "partitions": 1})
    ensure_topics(made)
    return made


@pytest.mark.stack
def test_a_trace_goes_from_the_caller_to_the_decision(
    settings: Settings, collector: Collector, triton: tuple[Server, str], tmp_path: Path
) -> None:
    environment = environment_of(
        settings,
        {
            "FLAGGER_OTLP_ENDPOINT": collector.url,
            "FLAGGER_TRACE_SHARE": "0",  # only what a caller traces
            "FLAGGER_GATEWAY_AUTH": "off",
            "FLAGGER_GATEWAY_DEADLINE_MS": "2000",
            "FLAGGER_GATEWAY_DRAIN_MS": "0",
        },
    )
    port, metrics_port = free_ports(2)
    streamer = FlaggerProcess(
        ["stream", "--metrics-port", str(metrics_port)], environment, tmp_path / "streamer.log"
    )
    gateway = FlaggerProcess(
        ["gateway", "--port", str(port)], environment, tmp_path / "gateway.log"
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for_url(f"{url}/readyz", gateway)

        def score(content: bytes, traceparent: str) -> int:
            headers = {"content-type": "application/json", "traceparent": traceparent}
            return httpx.post(
                f"{url}/v1/score", content=content, headers=headers, timeout=10
            ).status_code

        for name, traceparent in (("traced", SAMPLED), ("untraced", NOT_SAMPLED)):
            assert score(payment(name), traceparent) == 200
        refused = SAMPLED.replace(TRACE, REFUSED_TRACE)
        assert score(payment("traced").replace(b"12.5", b"3"), refused) == 409
        assert score(payment("bad").replace(b"12.5", f'"{PLANTED}"'.encode()), refused) == 422
        assert score(payment(PLANTED * 40), refused) == 422
        assert score(payment("cut")[:-1], refused) == 422
        producer = Producer({"bootstrap.servers": settings.kafka_bootstrap_servers})
        headers = {"traceparent": SAMPLED}
        key = f"c-{PLANTED}".encode()
        producer.produce(settings.transactions_topic, payment("cut")[:-1], key, headers=headers)
        producer.produce(settings.transactions_topic, payment("kafka"), key, headers=headers)
        producer.produce(settings.transactions_topic, payment("plain"), key)
        producer.flush(10)
        decisions = read(settings, 4)
        metrics = [
            httpx.get(f"http://127.0.0.1:{p}/metrics", timeout=10).text
            for p in (port, metrics_port)
        ]
    finally:
        gateway.stop()
        streamer.stop()
        triton[0].stop()  # which sends what it still has

    assert decisions.keys() == {"traced", "untraced", "kafka", "plain"}
    assert decisions["plain"].headers() is None
    assert decisions["untraced"].headers() is None
    traced = [(service, s) for service, s in collector.spans if s.trace_id.hex() == TRACE]
    assert {s.trace_id.hex() for _, s in collector.spans} == {TRACE, REFUSED_TRACE}
    spans = {(service, span.name): span for service, span in traced}
    request = spans["flagger-gateway", "POST /v1/score"]
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == SAMPLED.split("-")[2]
    of_request = [s for _, s in traced if s.parent_span_id == request.span_id]
    decided = [s for service, s in traced if service == "flagger-streamer"]
    assert {s.name for s in of_request} == STAGES | {"decide"}
    assert all(s.start_time_unix_nano <= s.end_time_unix_nano for s in of_request)
    assert len(decided) == 2
    assert {traceparent_of(decisions[name].headers()) for name in ("traced", "kafka")} == {
        f"00-{TRACE}-{s.span_id.hex()}-01" for s in decided
    }
    # Of Triton's own spans the first is the gateway's call; queue and computing lie in it.
    own = {span["spanId"] for span in collector.tritons}
    assert {span["traceId"] for span in collector.tritons} == {TRACE}
    callers = {span["parentSpanId"] for span in collector.tritons} - own
    assert callers == {request.span_id.hex()}
    assert {settings.gateway_model, "compute"} <= {span["name"] for span in collector.tritons}
    assert "\nflagger_streamer_dead_lettered_total 1.0\n" in metrics[1]
    logs = [(tmp_path / f"{name}.log").read_text() for name in ("gateway", "streamer")]
    assert all(logs)
    for told in (*map(str, (*collector.spans, *collector.tritons)), *metrics, *logs):
        assert PLANTED not in told


def test_a_fault_tells_a_trace_its_kind_and_no_card_number(collector: Collector) -> None:
    tracing = Tracing(Settings(otlp_endpoint=collector.url, trace_share=1.0), "flagger-gateway")
    with pytest.raises(ValueError, match=PLANTED), tracing.request("POST /v1/score", {}):
        raise ValueError(f"customer c-{PLANTED}")
    tracing.close()
    ((_, span),) = collector.spans
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert span.status.message == "ValueError"
    assert PLANTED not in str(span)


def test_without_a_collector_there_is_no_trace() -> None:
    assert Tracing.of(Settings(), "flagger-gateway") is None
    assert trace_headers() is None


def test_only_a_sampled_traceparent_counts() -> None:
    assert traceparent_of([("traceparent", SAMPLED.encode())]) == SAMPLED
    assert traceparent_of([("traceparent", NOT_SAMPLED.encode())]) is None
    assert traceparent_of([("other", b"1"), ("traceparent", None)]) is None  # type: ignore[list-item]
    assert traceparent_of(None) is None
