"""Health, readiness, metrics and the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi.openapi.models import OpenAPI
from prometheus_client.parser import text_string_to_metric_families

from flagger.wire.limits import MAX_AMOUNT
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.metrics import METRICS
from gateway.readiness import SHARED_S
from gateway.schemas import ANSWER_EXAMPLE, TRANSACTION_EXAMPLE

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
    "null": type(None),
}


CHECKS: dict[str, Callable[[Any, Any], bool]] = {
    "type": lambda value, wanted: isinstance(value, TYPES[wanted]) and not isinstance(value, bool),
    "enum": lambda value, wanted: value in wanted,
    "required": lambda value, wanted: set(wanted) <= value.keys(),
    "minimum": lambda value, wanted: value >= wanted,
    "maximum": lambda value, wanted: value <= wanted,
    "minLength": lambda value, wanted: len(value) >= wanted,
    "maxLength": lambda value, wanted: len(value) <= wanted,
}
NOTES = {"title", "description", "default", "examples", "format"}


def violations(value: Any, schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    """Check the parts of JSON Schema that our document uses; an unknown keyword is a violation."""
    found: list[str] = []
    for keyword, wanted in schema.items():
        if keyword in CHECKS:
            found += [] if CHECKS[keyword](value, wanted) else [f"{keyword} {wanted}: {value!r}"]
        elif keyword == "$ref":
            name = wanted.removeprefix("#/components/schemas/")
            found += violations(value, document["components"]["schemas"][name], document)
        elif keyword == "anyOf":
            if all(violations(value, option, document) for option in wanted):
                found.append(f"{value!r} fits none of {wanted}")
        elif keyword == "properties":
            for name in wanted.keys() & value.keys():
                found += violations(value[name], wanted[name], document)
        elif keyword == "items":
            found += [v for item in value for v in violations(item, wanted, document)]
        elif keyword not in NOTES:
            found.append(f"keyword {keyword}")
    return found


async def test_openapi_document_is_valid_and_its_examples_fit(gateway: Any) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    assert gateway.app.openapi() is gateway.app.openapi()  # nobody waits while it is made again
    OpenAPI.model_validate(document)
    assert document["openapi"].startswith("3.1")
    operation = document["paths"]["/v1/score"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert violations(content["example"], content["schema"], document) == []
    answer = operation["responses"]["200"]["content"]["application/json"]
    assert violations(answer["example"], answer["schema"], document) == []
    statuses = "200 400 401 403 408 409 413 415 422 429 500 503"
    assert set(operation["responses"]) == set(statuses.split())
    transaction = document["components"]["schemas"]["Transaction"]
    assert "decision" not in transaction["properties"]
    assert transaction["properties"]["amount"]["maximum"] == MAX_AMOUNT
    assert all("description" in p for p in transaction["properties"].values())
    for name in transaction["required"]:
        broken = {k: v for k, v in TRANSACTION_EXAMPLE.items() if k != name}
        (violation,) = violations(broken, content["schema"], document)
        assert violation.startswith("required")


async def test_documented_example_is_answered_as_documented(gateway: Any) -> None:
    example = TRANSACTION_EXAMPLE | {"event_time": "2023-11-15T12:00:00Z"}
    gateway.scorer.score_value = 0.6214
    document = (await gateway.client.get("/openapi.json")).json()
    answer = (await gateway.post(example)).json()
    assert violations(answer, {"$ref": "#/components/schemas/Answer"}, document) == []
    assert answer.keys() == ANSWER_EXAMPLE.keys()
    assert answer["reasons"] == ANSWER_EXAMPLE["reasons"]
    problem = (await gateway.post(example | {"amount": -1})).json()
    assert violations(problem, {"$ref": "#/components/schemas/Problem"}, document) == []


async def test_unknown_paths_and_methods_are_problems_too(gateway: Any) -> None:
    response = await gateway.client.get("/v2/score")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"
    response = await gateway.client.get("/v1/score")
    assert response.status_code == 405
    assert response.json()["title"] == "Method not allowed"
    assert response.headers["allow"] == "POST"
    for path in ("/v1/score/", "/v1/decisions", "/metrics/"):  # not sent elsewhere
        assert (await gateway.client.get(path)).status_code == 404


async def test_a_probe_that_breaks_tells_no_internals(
    gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_timeout_s: float) -> None:
        raise ValueError("c-planted-4111111111111111")

    monkeypatch.setattr(gateway.log, "check", broken)
    transport = httpx.ASGITransport(app=gateway.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        response = await client.get("/readyz")
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert "planted" not in response.text


async def test_readiness_is_found_out_once_a_second_for_all(
    start_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, checks, begun = 0.0, 0, asyncio.Event()

    async def check(_timeout_s: float) -> None:
        nonlocal checks
        checks += 1
        begun.set()
        await asyncio.sleep(0.05)

    async with start_gateway(clock=Clock(SYSTEM_CLOCK.now_ms, lambda: now_s)) as gateway:
        monkeypatch.setattr(gateway.log, "check", check)
        impatient = asyncio.create_task(gateway.client.get("/readyz"))
        await begun.wait()
        impatient.cancel()
        answers = await asyncio.gather(*(gateway.client.get("/readyz") for _ in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await gateway.client.get("/readyz")).status_code == 200
        assert checks == 1
        now_s = SHARED_S
        await gateway.client.get("/readyz")
        assert checks == 2


async def test_readiness_names_what_is_missing(
    gateway: Any, start_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.readiness.SHARED_S", 0.0)
    ready = await gateway.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "missing": {}}

    gateway.log.up = False
    gateway.scorer.ready = False
    response = await gateway.client.get("/readyz")
    assert response.status_code == 503
    assert set(response.json()["missing"]) == {"kafka", "model"}
    assert int(response.headers["retry-after"]) >= 1
    assert "fraud_onnx version 1" in response.json()["missing"]["model"]
    gateway.scorer.live = False
    assert set((await gateway.client.get("/readyz")).json()["missing"]) == {
        "kafka",
        "triton",
        "model",
    }
    async with start_gateway("valkey://127.0.0.1:1/0") as other:
        assert set((await other.client.get("/readyz")).json()["missing"]) == {"valkey"}


async def test_health_fails_only_where_a_restart_helps(gateway: Any) -> None:
    gateway.log.up = False
    assert (await gateway.client.get("/healthz")).status_code == 200
    gateway.log.fatal = "fenced"
    assert (await gateway.client.get("/healthz")).status_code == 503


async def test_metrics_are_those_declared(gateway: Any, body: Body) -> None:
    await gateway.post(body())
    await gateway.post(body())
    text = (await gateway.client.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    declared = {spec.name.removesuffix("_total") for spec in METRICS}
    ours = {name for name in families if name.startswith("flagger_")}
    assert ours == declared | {"flagger_build_info"}  # which every service has
    for spec in METRICS:
        assert spec.name.endswith(f"_{spec.unit}") or not spec.unit
    assert await gateway.metric('flagger_gateway_request_seconds_count{outcome="decided"}') == 1
    assert await gateway.metric('flagger_gateway_request_seconds_count{outcome="replayed"}') == 1
    assert await gateway.metric('flagger_gateway_stage_seconds_count{stage="model"}') == 1
    assert await gateway.metric('flagger_gateway_stage_seconds_count{stage="state"}') == 2
    line = 'flagger_gateway_model_info{model="fraud_onnx",version="1"}'
    assert await gateway.metric(line) == 1
    bounds = [
        sample.labels["le"]
        for sample in families["flagger_gateway_request_seconds"].samples
        if sample.name.endswith("_bucket") and sample.labels["outcome"] == "decided"
    ]
    assert bounds[0] == "0.001"
    assert {"0.1", "0.2"} < set(bounds)


async def test_stopping_flushes_the_log(start_gateway: Any) -> None:
    async with start_gateway() as gateway:
        assert not gateway.log.closed
    assert gateway.log.closed
