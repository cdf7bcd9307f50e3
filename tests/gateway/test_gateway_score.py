"""POST /v1/score: good requests, bad requests, repeats."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from flagger.errors import ModelUnavailableError
from flagger.features import FeatureEngine
from flagger.state.store import StateStore
from flagger.wire.messages import Transaction
from gateway.request import batch_of
from gateway.service import ScoringService

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("score", "decision", "reasons"),
    [
        (0.1, "approve", []),
        (0.5, "review", ["fraud score 0.5000 reaches the review threshold 0.5000"]),
        (
            0.95,
            "decline",
            ["fraud score 0.9500 reaches the decline threshold 0.9000", "amount 12.50"],
        ),
    ],
)
async def test_decides_and_logs_before_it_answers(
    gateway: Any, body: Body, score: float, decision: str, reasons: list[str]
) -> None:
    gateway.scorer.score_value = score
    sent = msgspec.json.encode(body(my_field={"kept": [1, 2]}))
    response = await gateway.post(sent + b"\n")
    assert response.status_code == 200
    answer = response.json()
    assert 0 < answer.pop("latency_ms") < 2_000
    assert answer.pop("score") == pytest.approx(score)
    assert answer == {
        "transaction_id": "t-1",
        "decision": decision,
        "decision_source": "model",
        "reasons": reasons,
        "reason_codes": ["score", "amount"][: len(reasons)],
        "model": "fraud_onnx",
        "model_version": "1",
        "policy_version": "p1",
    }
    assert "model;dur=" in response.headers["server-timing"]
    ((key, value),) = gateway.log.messages
    assert key == b"c-planted-4111111111111111"
    assert value.startswith(sent[:-1] + b',"decision":{')  # members unknown to us are kept
    (logged,) = gateway.log.decoded()
    assert logged.decision.decision == decision
    assert logged.decision.decision_source == "model"
    assert logged.decision.customer_id == "c-planted-4111111111111111"
    assert logged.decision.event_time == 1_700_049_600_000
    assert len(logged.decision.feature_hash) == 16


async def test_row_equals_that_of_the_stream_and_moves_nothing(
    gateway: Any, body: Body, empty_valkey: str, engine: FeatureEngine
) -> None:
    def batch(i: int) -> Any:
        event_time = 1_700_049_600_000 + i * 60_000
        return batch_of(
            msgspec.convert(
                body(transaction_id=f"t-{i}", event_time=event_time, amount=5.0 + i), Transaction
            )
        )

    for i in range(5):
        engine.process(batch(i))
    store = StateStore(empty_valkey)
    store.write("customer", engine.customers.take_dirty())
    store.write("terminal", engine.terminals.take_dirty())
    before = store.read("customer", batch(9).customer_key)
    response = await gateway.post(
        body(transaction_id="t-9", event_time=1_700_050_140_000, amount=14.0)
    )
    assert response.status_code == 200
    expected = engine.process(batch(9))
    assert gateway.scorer.rows[0].tobytes() == expected.rows.tobytes()
    assert not np.isnan(gateway.scorer.rows[0]).all()
    assert store.read("customer", batch(9).customer_key) == before
    store.close()


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"transaction_id": None}, None, "transaction_id"),
        ({"transaction_id": ""}, "transaction_id", "is empty"),
        ({"transaction_id": 7}, "transaction_id", "Expected `str`"),
        ({"customer_id": None}, None, "customer_id"),
        ({"customer_id": "x" * 129}, "customer_id", "has 129 bytes; the limit is 128"),
        ({"terminal_id": None}, None, "terminal_id"),
        ({"amount": None}, None, "amount"),
        ({"amount": -1}, "amount", "is not between 0 and 1e+09"),
        ({"amount": 2e9}, "amount", "is not between 0 and 1e+09"),
        ({"amount": "12"}, "amount", "Expected `float`"),
        ({"event_time": None}, None, "event_time"),
        ({"event_time": "yesterday"}, "event_time", "neither RFC 3339"),
        ({"event_time": "2023-11-15T12:00:00"}, "event_time", "with a zone"),
        ({"event_time": 1_700_049_600}, "event_time", "seconds instead of milliseconds"),
        ({"event_time": "2999-01-01T00:00:00Z"}, "event_time", "in the future"),
        ({"currency": "x" * 65}, "currency", "the limit is 64"),
        ({"channel": 3}, "channel", "Expected `str | null`"),
        (
            {
                "decision": {
                    "transaction_id": "t-1",
                    "customer_id": "c",
                    "event_time": 1,
                    "amount": 1.0,
                    "decision": "approve",
                    "decision_source": "list",
                }
            },
            "decision",
            "leave it out",
        ),
    ],
)
async def test_bad_transaction_is_refused_with_field_and_reason(
    gateway: Any, body: Body, changes: dict[str, Any], field: str | None, reason: str
) -> None:
    response = await gateway.post(body(**changes))
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:fraud-flagger:problem:bad_transaction"
    assert problem.get("field") == field
    assert reason in problem["reason"]
    assert gateway.log.messages == []
    assert await gateway.metric('flagger_gateway_errors_total{kind="bad_transaction"}') == 1


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"a":1}x', b"\xff", b"[" * 9_000])
async def test_malformed_json_is_refused(gateway: Any, raw: bytes) -> None:
    response = await gateway.post(raw)
    assert response.status_code == 422
    assert response.json()["reason"]


async def test_too_large_and_wrong_media_type(gateway: Any, body: Body) -> None:
    assert (await gateway.post(body(note="x" * 70_000))).status_code == 413

    async def chunks() -> Any:
        for _ in range(70):
            yield b" " * 1_000

    headers = {"content-type": "application/json"}
    response = await gateway.client.post("/v1/score", content=chunks(), headers=headers)
    assert response.status_code == 413
    response = await gateway.client.post("/v1/score", data={"transaction_id": "t-1"})
    assert response.status_code == 415
    assert response.json()["status"] == 415
    headers |= {"content-encoding": "gzip"}
    content = gzip.compress(msgspec.json.encode(body()))
    response = await gateway.client.post("/v1/score", content=content, headers=headers)
    assert response.status_code == 415
    assert "Content-Encoding" in response.json()["detail"]


async def test_repeat_gets_the_first_answer_and_is_not_written_twice(
    gateway: Any, body: Body
) -> None:
    first = await gateway.post(body())
    gateway.scorer.score_value = 0.99
    # The same transaction, written differently.
    second = await gateway.post(body(event_time=1_700_049_600_000, unknown=1))
    assert second.status_code == 200
    assert second.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(gateway.log.messages) == len(gateway.scorer.rows) == 1


async def test_concurrent_repeats_get_one_decision_and_one_message(
    gateway: Any, body: Body
) -> None:
    gateway.log.delay_s = 0.005
    responses = await asyncio.gather(*(gateway.post(body()) for _ in range(8)))
    assert {r.status_code for r in responses} == {200}
    assert len({r.content for r in responses}) == 1
    assert len(gateway.log.messages) == 1


@pytest.mark.parametrize("change", [{"amount": 12.51}, {"terminal_id": "m-2"}, {"country": "DE"}])
async def test_same_id_with_another_body_is_a_conflict(
    gateway: Any, body: Body, change: dict[str, Any]
) -> None:
    await gateway.post(body())
    response = await gateway.post(body(**change))
    assert response.status_code == 409
    assert response.json()["type"].endswith(":id_reused")
    assert len(gateway.log.messages) == 1


async def test_transaction_that_came_over_kafka_is_a_conflict(
    gateway: Any, body: Body, empty_valkey: str, engine: FeatureEngine
) -> None:
    engine.process(batch_of(msgspec.convert(body(event_time=1_700_049_600_000), Transaction)))
    store = StateStore(empty_valkey)
    store.write("customer", engine.customers.take_dirty())
    store.close()
    response = await gateway.post(body())
    assert response.status_code == 409
    assert response.json()["type"].endswith(":decided_by_stream")
    assert "decisions topic" in response.json()["detail"]
    assert gateway.log.messages == []


async def test_kafka_down_is_a_503_and_a_repeat_completes_the_write(
    gateway: Any, body: Body
) -> None:
    gateway.log.up = False
    response = await gateway.post(body())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"].endswith(":log_unavailable")
    batch = batch_of(msgspec.convert(body(), Transaction))
    stored = await gateway.state.read_claim(batch.transaction_key, 1_000)
    assert stored is not None
    assert not stored.written
    assert await gateway.metric('flagger_gateway_errors_total{kind="log_unavailable"}') == 1

    gateway.log.up = True
    gateway.scorer.score_value = 0.99  # the decision was made, a later score cannot change it
    again = await gateway.post(body())
    assert again.status_code == 200
    assert again.json()["decision"] == "approve"
    (logged,) = gateway.log.decoded()
    assert logged.decision.decision == "approve"
    await gateway.post(body())
    assert len(gateway.log.messages) == 1


async def test_crash_between_claim_and_write_loses_nothing(
    start_gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    async def crash(*_args: Any) -> None:
        raise Crash

    async with start_gateway() as first:
        first.scorer.score_value = 0.7
        with monkeypatch.context() as patch:
            patch.setattr(ScoringService, "_write", crash)
            with pytest.raises(Crash):
                await first.post(body())
        assert first.log.messages == []
    async with start_gateway() as second:
        response = await second.post(body())
        assert response.json()["decision"] == "review"
        (logged,) = second.log.decoded()
        assert logged.decision.score == pytest.approx(0.7)


async def test_claimed_fallback_stays_the_answer(gateway: Any, body: Body) -> None:
    gateway.scorer.error = ModelUnavailableError("down")
    first = await gateway.post(body())
    gateway.scorer.error = None
    second = await gateway.post(body())
    assert second.json() == first.json()
    assert second.json()["decision_source"] == "fallback"
