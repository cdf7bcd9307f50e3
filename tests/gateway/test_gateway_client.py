"""The typed client: what it returns, what it tries again, what it gives up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest

from gateway.client import AsyncGatewayClient, GatewayClient, GatewayError

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]


async def test_speaks_to_the_real_gateway(gateway: Any, body: Body) -> None:
    transport = httpx.ASGITransport(app=gateway.app)
    async with AsyncGatewayClient("http://gateway", timeout_s=5, transport=transport) as client:
        answer = await client.score(body(transaction_id="a/b"))
        assert answer.decision == "approve"
        assert await client.decision("a/b") == answer
        good, bad = await client.score_batch([body(transaction_id="b-1"), {}])
        assert good.answer is not None
        assert good.answer.transaction_id == "b-1"
        assert bad.problem is not None
        assert bad.problem.status == 422
        label = await client.feedback("a/b", is_fraud=True, source="chargeback")
        assert label.terminal_id == "m-1"
        with pytest.raises(GatewayError, match="422") as caught:
            await client.score(body(amount=-1))
        assert caught.value.problem is not None
        assert caught.value.problem.field == "amount"


async def test_503_is_sent_again_and_gets_the_one_decision(gateway: Any, body: Body) -> None:
    transport = httpx.ASGITransport(app=gateway.app)
    gateway.log.up = False

    async def recover() -> None:
        await asyncio.sleep(0.2)
        gateway.log.up = True

    recovering = asyncio.create_task(recover())
    async with AsyncGatewayClient("http://gateway", timeout_s=5, transport=transport) as client:
        assert (await client.score(body())).decision == "approve"
    await recovering
    assert len(gateway.log.messages) == 1


def scripted(*replies: httpx.Response | Exception) -> tuple[GatewayClient, list[httpx.Request]]:
    """Return a client whose server gives these replies, the last one for ever."""
    requests: list[httpx.Request] = []
    left = list(replies)

    def reply(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        found = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(found, Exception):
            raise found
        return found

    transport = httpx.MockTransport(reply)
    return GatewayClient("http://g", "ffk_x", timeout_s=0.6, transport=transport), requests


ANSWER = {
    "transaction_id": "t",
    "decision": "approve",
    "decision_source": "model",
    "score": 0.1,
    "reasons": [],
    "reason_codes": [],
    "model": "m",
    "model_version": "1",
    "policy_version": "1",
    "latency_ms": 1.0,
}


def test_lost_answers_are_asked_for_again() -> None:
    good = httpx.Response(200, content=msgspec.json.encode(ANSWER))
    client, requests = scripted(httpx.ReadTimeout("slow"), httpx.ConnectError("gone"), good)
    assert client.score({"transaction_id": "t"}).decision == "approve"
    assert len(requests) == 3
    assert {r.content for r in requests} == {b'{"transaction_id":"t"}'}
    assert requests[0].headers["authorization"] == "Bearer ffk_x"
    client.close()


def test_gives_up_when_no_time_is_left() -> None:
    client, requests = scripted(httpx.Response(503, headers={"retry-after": "30"}, text="x"))
    with pytest.raises(GatewayError, match="503"):
        client.score({})
    assert len(requests) == 1
    client, requests = scripted(httpx.ConnectError("gone"))
    with pytest.raises(GatewayError, match="did not answer"):
        client.feedback("t", is_fraud=False)
    assert len(requests) > 2


@pytest.mark.parametrize("status", [400, 401, 403, 409, 413, 422, 500])
def test_what_says_never_is_not_sent_again(status: int) -> None:
    client, requests = scripted(httpx.Response(status, text="no"))
    with pytest.raises(GatewayError) as caught:
        client.decision("t")
    assert caught.value.status == status
    assert len(requests) == 1


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_says_not_now_is_sent_again(status: int) -> None:
    good = httpx.Response(200, content=msgspec.json.encode(ANSWER))
    client, requests = scripted(httpx.Response(status, text="<html>"), good)
    assert client.score({"transaction_id": "t"}).decision == "approve"
    assert len(requests) == 2


def test_a_page_of_something_in_between_is_no_answer() -> None:
    client, _ = scripted(httpx.Response(200, text="<html>Sign in</html>"))
    with pytest.raises(GatewayError, match="no answer of the gateway"):
        client.score({"transaction_id": "t"})


async def test_a_replica_that_hangs_leaves_time_for_another_attempt() -> None:
    """The first connection gets no answer, as of a machine that is gone; the second one does."""
    content = msgspec.json.encode(ANSWER)
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
            await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with AsyncGatewayClient(url, timeout_s=2.0) as client:
        assert (await client.score({"transaction_id": "t"})).decision == "approve"
    with GatewayClient(url, timeout_s=2.0) as blocking:
        connections = 0
        answer = await asyncio.to_thread(blocking.score, {"transaction_id": "t"})
        assert answer.decision == "approve"
    server.close()
