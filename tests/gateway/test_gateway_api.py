"""Batches, stored decisions, labels, models, and what a request may ask of its answer."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flagger.errors import ModelUnavailableError
from flagger.features import FEATURE_NAMES
from gateway.breaker import FAILURES, OPENS_AFTER_S
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.metrics import STAGES
from gateway.routes_score import MAX_BATCH

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
COUNT = FEATURE_NAMES.index("customer_count")


async def post(gateway: Any, path: str, body: Any, **headers: str) -> Any:
    return await gateway.client.post(path, json=body, headers=headers)


async def test_batch_gives_each_its_own_result(gateway: Any, body: Body) -> None:
    await gateway.post(body(transaction_id="earlier"))
    sent = [
        body(transaction_id="b-1"),
        body(transaction_id="b-2", amount=-1),
        body(transaction_id="earlier"),
        body(transaction_id="earlier", amount=3),
        7,
        body(transaction_id="b-3"),
    ]
    response = await post(gateway, "/v1/score/batch", {"transactions": sent, "mine": 1})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [r["status"] for r in results] == [200, 422, 200, 409, 422, 200]
    assert results[0]["answer"]["transaction_id"] == "b-1"
    assert results[1]["problem"]["field"] == "amount"
    assert results[3]["problem"]["type"].endswith(":id_reused")
    assert [t.transaction_id for t in gateway.log.decoded()] == ["earlier", "b-1", "b-3"]
    # Its transactions count each other in their order.
    assert [int(rows[0, COUNT]) for rows in gateway.scorer.rows] == [0, 1, 2]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"transactions": []}, 200),
        ({"transactions": [{}] * MAX_BATCH}, 200),
        ({"transactions": [{}] * (MAX_BATCH + 1)}, 422),
        ({"transactions": {}}, 422),
        ([], 422),
        ({"transactions": ["x" * 1_100_000]}, 413),
    ],
)
async def test_limits_of_a_batch(gateway: Any, sent: Any, status: int) -> None:
    response = await post(gateway, "/v1/score/batch", sent)
    assert response.status_code == status
    if status == 200:
        assert len(response.json()["results"]) == len(sent["transactions"])


async def test_decision_can_be_asked_for_later(gateway: Any, body: Body) -> None:
    answer = (await gateway.post(body(transaction_id="a/b c"))).json()
    found = await gateway.client.get("/v1/decisions/a%2Fb%20c")
    assert found.json() == answer
    missing = await gateway.client.get("/v1/decisions/other")
    assert missing.status_code == 404
    assert missing.json()["type"].endswith(":unknown_transaction")
    assert (await gateway.client.get("/v1/decisions/" + "x" * 200)).status_code == 404
    gateway.log.up = False
    await gateway.post(body(transaction_id="not-recorded"))
    unrecorded = await gateway.client.get("/v1/decisions/not-recorded")
    assert unrecorded.status_code == 404
    assert "once more" in unrecorded.json()["detail"]


async def test_label_takes_what_the_decision_knows(gateway: Any, body: Body) -> None:
    await gateway.post(body())
    response = await post(gateway, "/v1/feedback", {"transaction_id": "t-1", "is_fraud": True})
    assert response.status_code == 202
    (label,) = [msgspec.json.decode(raw) for raw in gateway.log.labels]
    assert label == response.json()
    assert label["terminal_id"] == "m-1"
    assert label["event_time"] == 1_700_049_600_000
    assert label["is_fraud"] is True
    assert label["source"] == "api"
    given = {"terminal_id": "m-1", "event_time": "2023-11-15T12:00:00Z", "source": "chargeback"}
    sent = {"transaction_id": "t-1", "is_fraud": False} | given
    assert (await post(gateway, "/v1/feedback", sent)).status_code == 202
    conflict = await post(gateway, "/v1/feedback", sent | {"terminal_id": "m-2"})
    assert conflict.status_code == 409
    elsewhere = sent | {"transaction_id": "came over Kafka"}
    assert (await post(gateway, "/v1/feedback", elsewhere)).status_code == 202
    assert len(gateway.log.labels) == 3
    gateway.log.up = False
    assert (await post(gateway, "/v1/feedback", elsewhere)).status_code == 503


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"terminal_id": None}, "terminal_id"),
        ({"event_time": None}, "event_time"),
        ({"event_time": "yesterday"}, "event_time"),
        ({"labelled_at": "soon"}, "labelled_at"),
        ({"labelled_at": 1_700_049_600}, "labelled_at"),  # seconds
        ({"labelled_at": "2023-11-15T11:59:59Z"}, "labelled_at"),  # before the transaction
        ({"labelled_at": "2999-01-01T00:00:00Z"}, "labelled_at"),
        ({"is_fraud": "yes"}, "is_fraud"),
        ({"transaction_id": ""}, "transaction_id"),
        ({"transaction_id": "x" * 129}, "transaction_id"),
        ({"unknown": 1}, None),
    ],
)
async def test_bad_label_is_refused(
    gateway: Any, changes: dict[str, Any], field: str | None
) -> None:
    good = {
        "transaction_id": "t-1",
        "is_fraud": True,
        "terminal_id": "m-1",
        "event_time": 1_700_049_600_000,
    }
    sent = {name: value for name, value in (good | changes).items() if value is not None}
    response = await post(gateway, "/v1/feedback", sent)
    assert response.status_code == 422
    assert response.json().get("field") == field
    assert gateway.log.labels == []


async def test_models_tells_who_decides(start_gateway: Any, tmp_path: Path) -> None:
    async with start_gateway(model_repository=tmp_path) as gateway:
        found = (await gateway.client.get("/v1/models")).json()
    assert found == {
        "model": "fraud_onnx",
        "model_version": "1",
        "policy_version": "p1",
        "review_threshold": 0.5,
        "decline_threshold": 0.9,
        "versions": [],
    }


async def test_stages_are_told_on_request(gateway: Any, body: Body) -> None:
    assert "stages_ms" not in (await gateway.post(body())).json()
    response = await gateway.client.post("/v1/score?stages=1", json=body(transaction_id="t-2"))
    stages = response.json()["stages_ms"]
    assert tuple(stages) == STAGES
    assert all(value >= 0 for value in stages.values())


async def test_callers_deadline_shortens_ours_only(gateway: Any, body: Body) -> None:
    gateway.scorer.delay_s = 0.3
    hurried = await gateway.client.post("/v1/score", json=body(), headers={"X-Deadline-Ms": "100"})
    assert hurried.json()["decision_source"] == "fallback"
    assert hurried.json()["latency_ms"] < 100
    patient = await gateway.client.post(
        "/v1/score", json=body(transaction_id="t-2"), headers={"X-Deadline-Ms": "60000"}
    )
    assert patient.json()["decision_source"] == "model"
    for bad in ("soon", "0", "-5", "nan"):
        refused = await gateway.client.post(
            "/v1/score", json=body(), headers={"X-Deadline-Ms": bad}
        )
        assert refused.status_code == 400


async def test_service_that_fails_is_left_alone_and_tried_again(
    start_gateway: Any, body: Body
) -> None:
    moment_s = [100.0]
    clock = Clock(SYSTEM_CLOCK.now_ms, lambda: moment_s[0])
    ids = (f"t-{i}" for i in itertools.count())

    async with start_gateway(clock=clock) as gateway:

        async def source() -> str:
            answer = (await gateway.post(body(transaction_id=next(ids)))).json()
            return str(answer["decision_source"])

        gateway.scorer.error = ModelUnavailableError("down")
        for _ in range(FAILURES):  # all in one moment: as if this process had stood still
            assert await source() == "fallback"
        assert await gateway.metric('flagger_gateway_breaker_open{service="triton"}') == 0
        moment_s[0] += OPENS_AFTER_S
        assert await source() == "fallback"
        gateway.scorer.error = None
        assert await source() == "fallback"
        assert len(gateway.scorer.rows) == FAILURES + 1  # the last one was not sent
        assert await gateway.metric('flagger_gateway_breaker_open{service="triton"}') == 1
        moment_s[0] += 1.1
        assert await source() == "model"
        assert await source() == "model"
        assert await gateway.metric('flagger_gateway_breaker_open{service="triton"}') == 0


async def test_kafka_away_is_answered_at_once_after_some_failures(
    start_gateway: Any, body: Body
) -> None:
    moment_s = [100.0]
    clock = Clock(SYSTEM_CLOCK.now_ms, lambda: moment_s[0])
    async with start_gateway(clock=clock) as gateway:
        await gateway.post(body(transaction_id="written"))
        gateway.log.up = False
        for i in range(FAILURES):
            assert (await gateway.post(body(transaction_id=f"t-{i}"))).status_code == 503
            moment_s[0] += OPENS_AFTER_S / (FAILURES - 1)
        asked = len(gateway.scorer.rows)
        response = await gateway.post(body(transaction_id="next"))
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert len(gateway.scorer.rows) == asked  # nobody was bothered
        assert (await gateway.post(body(transaction_id="written"))).status_code == 200
        gateway.log.up = True
        moment_s[0] += 1.1
        assert (await gateway.post(body(transaction_id="next"))).status_code == 200


@pytest.mark.parametrize(
    ("setting", "amount", "decision", "source"),
    [
        ("review", 1.0, "review", "fallback"),
        ("approve", 5_000.0, "approve", "fallback"),
        ("decline", 1.0, "decline", "fallback"),
        ("rules", 1.0, "approve", "rules"),
        ("rules", 5_000.0, "review", "rules"),
    ],
)
async def test_setting_says_what_decides_without_the_model(
    start_gateway: Any, body: Body, setting: str, amount: float, decision: str, source: str
) -> None:
    async with start_gateway(gateway_fallback=setting) as gateway:
        gateway.scorer.error = ModelUnavailableError("down")
        answer = (await gateway.post(body(amount=amount))).json()
        assert (answer["decision"], answer["decision_source"]) == (decision, source)
        if source == "rules":
            for i in range(10):
                answer = (await gateway.post(body(transaction_id=f"r-{i}", amount=amount))).json()
            assert answer["decision"] == "decline"
            assert "rule: 10 or more payments of the customer in an hour" in answer["reasons"]
