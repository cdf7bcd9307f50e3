"""The typed client: what it returns, what it tries again, what it gives up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
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


@pytest.mark.parametrize(
    ("after_s", "sent"), [(3_600.0, 1), (-3_600.0, 2)], ids=["in an hour", "an hour ago"]
)
def test_a_date_to_retry_after_is_kept(after_s: float, sent: int) -> None:
    """A balancer may say when in words; no attempt is made that it asks to leave out."""
    date = formatdate(time.time() + after_s, usegmt=True)
    good = httpx.Response(200, content=msgspec.json.encode(ANSWER))
    client, requests = scripted(httpx.Response(503, headers={"retry-after": date}), good)
    with contextlib.suppress(GatewayError):
        client.decision("t")
    assert len(requests) == sent


@pytest.mark.parametrize("after", ["soon", "-1", f"Fri, 31 Dec {'9' * 30} 23:59:59 GMT"])
def test_what_is_no_date_asks_for_nothing(after: str) -> None:
    good = httpx.Response(200, content=msgspec.json.encode(ANSWER))
    client, _ = scripted(httpx.Response(503, headers={"retry-after": after}), good)
    assert client.decision("t").decision == "approve"


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


NO_JSON = [b"<html>Sign in</html>", b'{"type":"\xff"}', b'{"x":' + b"[" * 20_000]


@pytest.mark.parametrize("content", NO_JSON, ids=["page", "no-unicode", "deep"])
def test_a_page_of_something_in_between_is_no_answer(content: bytes) -> None:
    client, _ = scripted(httpx.Response(200, content=content))
    with pytest.raises(GatewayError, match="no answer of the gateway"):
        client.score({"transaction_id": "t"})
    good = httpx.Response(200, content=msgspec.json.encode(ANSWER))
    client, _ = scripted(httpx.Response(503, content=content), good)
    assert client.score({"transaction_id": "t"}).decision == "approve"


@contextlib.asynccontextmanager
async def raw_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """Serve bytes; yields the URL."""
    serving: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
            await serve(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        serving.append(asyncio.create_task(handle(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        for writer in writers:
            writer.close()  # also of a task that never began
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n", b"HTTP"])
async def test_an_answer_in_drops_holds_nobody_beyond_the_limit(begin: bytes) -> None:
    """Drops of a body and of a head: no single read takes long."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for drop in (begin, *[b"1"] * 60):
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.05)

    async with raw_server(drip) as url:
        async with AsyncGatewayClient(url, timeout_s=0.2) as client:
            start_s = time.monotonic()
            with pytest.raises(GatewayError, match="did not answer"):
                await client.decision("t")
            assert time.monotonic() - start_s < 1.0
        with GatewayClient(url, timeout_s=0.2) as blocking:
            start_s = time.monotonic()
            with pytest.raises(GatewayError, match="did not answer"):
                await asyncio.to_thread(blocking.decision, "t")
            assert time.monotonic() - start_s < 1.0


async def test_closing_ends_the_calls_of_other_threads() -> None:
    connected = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()

    async with raw_server(hang) as url:
        client = GatewayClient(url, timeout_s=30)
        call = asyncio.create_task(asyncio.to_thread(client.decision, "t"))
        await connected.wait()
        await asyncio.to_thread(client.close)
        for ended in (call, asyncio.to_thread(client.decision, "t")):
            with pytest.raises(GatewayError):
                await asyncio.wait_for(ended, 5)
        client.close()


async def test_a_client_that_is_forgotten_closes_its_connection() -> None:
    content = msgspec.json.encode(ANSWER)
    has_ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
        await reader.read()
        has_ended.set()

    async with raw_server(serve) as url:
        others = set(threading.enumerate())
        client = GatewayClient(url, timeout_s=5)
        assert (await asyncio.to_thread(client.decision, "t")).decision == "approve"
        (thread,) = (t for t in set(threading.enumerate()) - others if t.name == "loop")
        del client
        await asyncio.wait_for(has_ended.wait(), 5)
        await asyncio.to_thread(thread.join, 5)
    gc.collect()  # a connection that nobody closed would be reported, and fail this test


def test_a_client_that_worked_before_a_fork_says_so_in_the_child(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its thread stays in the parent: without a word, the child would wait for ever."""
    client, requests = scripted(httpx.Response(200, content=msgspec.json.encode(ANSWER)))
    client.decision("t")
    with monkeypatch.context() as child:
        child.setattr("os.getpid", lambda: -1)
        with pytest.raises(GatewayError, match="forked"):
            client.decision("t")
    assert len(requests) == 1
    client.close()


async def test_an_answer_whose_compression_is_broken_is_a_lost_one() -> None:
    content = msgspec.json.encode(ANSWER)
    good = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content
    broken = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nnone"
    answers: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(answers.pop(0) if answers else broken)
            await writer.drain()

    async with raw_server(serve) as url, AsyncGatewayClient(url, timeout_s=0.3) as client:
        with pytest.raises(GatewayError, match="did not answer"):
            await client.decision("t")
        answers += [broken, good]
        assert (await client.decision("t")).decision == "approve"


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

    async with raw_server(serve) as url:
        async with AsyncGatewayClient(url, timeout_s=2.0) as client:
            assert (await client.score({"transaction_id": "t"})).decision == "approve"
        with GatewayClient(url, timeout_s=2.0) as blocking:
            connections = 0
            answer = await asyncio.to_thread(blocking.score, {"transaction_id": "t"})
            assert answer.decision == "approve"
