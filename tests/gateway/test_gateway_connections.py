"""What reaches the real server before the application sees it: heads, and bodies nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flagger.settings import Settings
from gateway import connection
from gateway.app import create_app
from gateway.server import server_config

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]


@pytest.fixture
async def port(gateway: Any) -> Any:
    """Serve on a real socket, with the backends of the gateway in process."""
    settings = Settings(gateway_auth="off", gateway_deadline_ms=2_000)
    async with gateway.serving(settings) as number:
        yield number


@pytest.fixture
def opened(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        yield client


def answer_of(client: socket.socket, reader: Any = None) -> tuple[int, dict[str, str], bytes]:
    """Read one answer whole."""
    reader = reader or client.makefile("rb")
    status = int(reader.readline().split()[1])
    headers = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return status, headers, reader.read(int(headers["content-length"]))


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def refused(client: socket.socket, status: int, kind: str) -> None:
    """Check that the answer is this problem, and that the connection ends with it."""
    found, headers, content = answer_of(client)
    assert (found, json.loads(content)["type"].rpartition(":")[2]) == (status, kind)
    assert json.loads(content)["status"] == status
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    assert is_closed(client)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: %b" % (b"a" * 200_000),
        b"GET /%b" % (b"a" * 200_000),
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(20_000)),
        b"GET /healthz HTTP/1.1\r\nX-Long: %b\r\n\r\n" % (b"a" * 40_000),
    ],
    ids=["one header", "path", "many headers", "whole, in one piece"],
)
async def test_a_head_has_a_size(opened: socket.socket, head: bytes) -> None:
    with contextlib.suppress(OSError):  # refused while we still send
        opened.sendall(head)
    refused(opened, 431, "head_too_large")


async def test_a_head_has_a_time(
    opened: socket.socket, monkeypatch: pytest.MonkeyPatch, port: int
) -> None:
    opened.close()
    monkeypatch.setattr(connection, "HEAD_LIMIT_S", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        start_s = time.monotonic()
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(3):
            await asyncio.sleep(0.05)
            client.sendall(b"X: y\r\n")
        refused(client, 408, "slow_request")
        assert time.monotonic() - start_s < 2
    for useless in (b"", b"\r\n"):  # nothing that could be answered
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(useless)
            assert is_closed(client)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer_of(client)[0] == 200
        client.sendall(b"GET /healthz HT")  # the next head on the same connection
        refused(client, 408, "slow_request")


async def test_what_is_not_http_is_a_problem_too(opened: socket.socket) -> None:
    opened.sendall(b"GARBAGE\r\n\r\n")
    refused(opened, 400, "bad_request")


async def test_a_connection_carries_many_requests(opened: socket.socket, body: Body) -> None:
    """Also such as come in pieces, and two at a time."""
    content = json.dumps(body()).encode()
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    for _ in range(3):
        for i in range(0, len(request), 97):
            opened.sendall(request[i : i + 97])
        assert answer_of(opened)[0] == 200
    opened.sendall(request + request)
    reader = opened.makefile("rb")
    assert [answer_of(opened, reader)[0] for _ in range(2)] == [200, 200]


async def test_a_body_that_nobody_reads_ends(opened: socket.socket) -> None:
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    opened.sendall(head + b"Content-Type: application/json\r\n\r\n")
    chunk = b"10000\r\n%b\r\n" % (b" " * 0x10000)
    opened.settimeout(0.2)
    sent, ended = 0, False
    end_s = time.monotonic() + 10
    while not ended and time.monotonic() < end_s:
        try:
            opened.sendall(chunk)
            sent += 0x10000
        except ConnectionError:
            ended = True
    assert ended
    assert sent < 64 * 1024 * 1024


async def test_idle_connections_outlive_a_balancers(port: int) -> None:
    """Who closes first risks that the other one sends at that moment: that must not be us."""
    assert connection.KEEP_ALIVE_S > 60
    settings = Settings(gateway_auth="off")
    config = server_config(create_app(settings), settings, "127.0.0.1", port)
    assert config.timeout_keep_alive == connection.KEEP_ALIVE_S
