"""Nothing that a caller can send makes the gateway fail: 10,000 bodies, and schemathesis."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
SEED = 20261124
BODIES = 10_000
ODD: tuple[Any, ...] = (
    *(None, True, "", "x" * 129, "\u0000", "é" * 70, "\ud800", "NaN", "4111111111111111"),
    *(0, -1, 2**63, 2**70, -(2**70), 1e308, float("nan"), float("inf"), 0.1),
    *([], [[]], {}, {"a": {"b": []}}, "2026-01-31T12:00:00Z", "0001-01-01T00:00:00+23:59"),
    *("9999-12-31T23:59:59Z", "2024-02-30T00:00:00Z", "2023-11-15T12:00:00.123456789Z"),
)


def fuzzed(chance: random.Random, good: dict[str, Any]) -> bytes:
    """Return a good body with odd values, missing and repeated members, or broken bytes."""
    changed = dict(good, transaction_id=f"t-{chance.randrange(500)}")
    for _ in range(chance.randrange(4)):
        changed[chance.choice([*good, "decision", "schema_version", "x"])] = chance.choice(ODD)
    for _ in range(chance.randrange(2)):
        changed.pop(chance.choice(list(changed)), None)
    raw = bytearray(json.dumps(changed).encode())
    if chance.random() < 0.3:
        for _ in range(chance.randrange(1, 4)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
    if chance.random() < 0.1:
        del raw[chance.randrange(len(raw)) :]
    return bytes(raw)


async def test_ten_thousand_odd_bodies(start_gateway: Any, body: Body) -> None:
    chance = random.Random(SEED)
    statuses: Counter[int] = Counter()
    async with start_gateway(gateway_max_in_flight=100, budget_ms=20_000) as gateway:
        for _ in range(BODIES // 50):
            bodies = [fuzzed(chance, body()) for _ in range(50)]
            responses = await asyncio.gather(*(gateway.post(raw) for raw in bodies))
            statuses.update(r.status_code for r in responses)
        odd_batch = (
            b'{"transactions":[' + b",".join(fuzzed(chance, body()) for _ in range(9)) + b"]}"
        )
        headers = {"content-type": "application/json"}
        for path in ("/v1/score/batch", "/v1/feedback"):
            for _ in range(200):
                content = odd_batch if "batch" in path else fuzzed(chance, body(is_fraud=True))
                response = await gateway.client.post(path, content=content, headers=headers)
                statuses[response.status_code] += 1
        assert await gateway.metric('flagger_gateway_errors_total{kind="internal"}') == 0
    assert set(statuses) <= {200, 202, 409, 422}, f"seed {SEED}: {statuses}"
    assert min(statuses[200], statuses[409], statuses[422]) > 100


async def test_requests_made_from_the_document_find_no_failure(gateway: Any) -> None:
    """Schemathesis, with good and bad requests for each operation; only a 5xx is a failure."""
    document = gateway.app.openapi()
    schema = schemathesis.openapi.from_dict(document)
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    count = 0

    def check(operation: Any, mode: GenerationMode) -> None:
        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def run(case: Any) -> None:
            nonlocal count
            count += 1
            sent = case.as_transport_kwargs(base_url="http://gateway")
            sending = gateway.client.request(
                sent["method"],
                sent["url"],
                params=sent.get("params"),
                json=sent.get("json"),
                headers={k: v for k, v in (sent.get("headers") or {}).items() if v.isascii()},
            )
            response = asyncio.run_coroutine_threadsafe(sending, loop).result(20)
            if response.status_code >= 500:
                failures.append(f"{case.method} {case.path} {response.text}")

        run()

    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]
        if operation.path in ("/readyz", "/metrics", "/healthz"):
            continue
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            await asyncio.to_thread(check, operation, mode)
    assert failures == []
    assert count > 100
