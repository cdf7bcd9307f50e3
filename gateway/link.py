"""One connection to Valkey that all requests share: commands are pipelined, never queued.

A command is written at once and its answer is matched by order, so hundreds of requests use one
socket and a loop turn sends all that it has in one piece. A command costs 9 to 20 us of CPU, where
the client library's pool costs 45 to 60, and commands keep their order: what one request has
written, the next one sees.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections import deque
from typing import Any, cast

import libvalkey
from valkey.asyncio.connection import parse_url
from valkey.exceptions import ValkeyError

from flagger.errors import ConfigurationError, StateStoreError
from gateway.expiry import Expiry

__all__ = ["Command", "Script", "ValkeyLink", "require"]

MAX_UNANSWERED = 10_000
"""Most commands without an answer; far more than requests in flight, so the server must hang."""
STUCK_S = 3.0
"""A server that owes an answer for so long is left: a new connection may reach another one."""
_NO_REPLY = object()

Command = tuple[bytes | str | int, ...]


class Script:
    """A Lua script that the server keeps under its SHA-1.

    Args:
        text: The script.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha1 = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


class _Call:
    """Commands that were sent together, and the replies so far."""

    __slots__ = ("future", "n", "replies", "sent_s")

    def __init__(self, future: asyncio.Future[list[Any]], n: int) -> None:
        self.future = future
        self.n = n
        self.replies: list[Any] = []
        self.sent_s = time.monotonic()


class _Connection(asyncio.Protocol):
    """An open socket: replies come in the order of the commands."""

    def __init__(self) -> None:
        self._reader = libvalkey.Reader(notEnoughData=_NO_REPLY)
        self._waiting: deque[_Call] = deque()
        self._out: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_stuck(self) -> bool:
        return bool(self._waiting) and (
            len(self._waiting) >= MAX_UNANSWERED
            or time.monotonic() - self._waiting[0].sent_s > STUCK_S
        )

    def send(self, commands: list[Command]) -> asyncio.Future[list[Any]]:
        """Send commands (at least one) together; the future gets their replies, or an OSError."""
        if not self._out:
            self._loop.call_soon(self._flush)
        call = _Call(self._loop.create_future(), len(commands))
        self._out += [libvalkey.pack_command(command) for command in commands]
        self._waiting.append(call)
        return call.future

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None:
            self._transport.write(b"".join(out))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while self._waiting:
            try:
                reply = self._reader.gets()
            except libvalkey.ProtocolError:
                self.abort()
                return
            if reply is _NO_REPLY:
                return
            call = self._waiting[0]
            call.replies.append(reply)
            if len(call.replies) == call.n:
                self._waiting.popleft()
                if not call.future.done():  # its caller has given up
                    call.future.set_result(call.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting, self._waiting = self._waiting, deque()
        for call in waiting:
            if not call.future.done():
                call.future.set_exception(ConnectionResetError(f"connection lost ({exc})"))


class ValkeyLink:
    """Commands over one connection that is made on first use and again after it broke.

    Args:
        url: valkey://user:password@host:port/db; valkeys:// for TLS, with `ssl_ca_certs`,
            `ssl_certfile` and `ssl_keyfile` (paths) in its query; unix:// for a socket.
    """

    def __init__(self, url: str) -> None:
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
        except ValueError as error:
            raise ConfigurationError(
                f"FLAGGER_VALKEY_URL is not a Valkey address ({error}); write valkey://host:port/0."
            ) from error
        self._tls = _tls_context(self._options) if url.startswith(("valkeys", "rediss")) else None
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._expiry = Expiry()

    async def call(self, what: str, commands: list[Command], timeout_ms: float) -> list[Any]:
        """Send commands in one piece and return their replies, in order.

        Args:
            what: Ends the sentence "Valkey did not ..." in an error.
            commands: Each a name and its arguments.
            timeout_ms: Limit for all of it, connecting included.

        Raises:
            StateStoreError: No answer in time. Error replies are returned: see `require`.
        """
        end_s = time.monotonic() + timeout_ms / 1000
        try:
            connection = self._connection
            if connection is None or not connection.is_open or connection.is_stuck:
                async with asyncio.timeout(timeout_ms / 1000):
                    connection = await self._connect()
            replies = connection.send(commands)
            self._expiry.limit(replies, end_s - time.monotonic())
            return await replies
        except TimeoutError as error:
            raise StateStoreError(f"Valkey did not {what} within {timeout_ms:.0f} ms.") from error
        except (ValkeyError, OSError) as error:
            raise StateStoreError(
                f"Valkey did not {what}: {error}. Check FLAGGER_VALKEY_URL and the server."
            ) from error

    async def run(
        self, what: str, script: Script, keys: list[bytes], arguments: Command, timeout_ms: float
    ) -> Any:
        """Run a script and return its reply; the text is sent where the server lacks it."""
        tail = (len(keys), *keys, *arguments)
        (reply,) = await self.call(what, [("EVALSHA", script.sha1, *tail)], timeout_ms)
        if isinstance(reply, libvalkey.ReplyError) and str(reply).startswith("NOSCRIPT"):
            (reply,) = await self.call(what, [("EVAL", script.text, *tail)], timeout_ms)
        require([reply], what)
        return reply

    async def close(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
            await asyncio.sleep(0)

    async def _connect(self) -> _Connection:
        """Return a new connection; callers that come meanwhile wait for the same one."""
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._open())
            self._connecting.add_done_callback(self._forget_attempt)
        return await asyncio.shield(self._connecting)

    def _forget_attempt(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # those who wait have it; without them nobody else asks

    async def _open(self) -> _Connection:
        if self._connection is not None:
            self._connection.abort()
        options, loop = self._options, asyncio.get_running_loop()
        async with asyncio.timeout(STUCK_S):
            if "path" in options:
                _, link = await loop.create_unix_connection(_Connection, options["path"])
            else:
                host = options.get("host", "localhost")
                port = options.get("port", 6379)
                _, link = await loop.create_connection(_Connection, host, port, ssl=self._tls)
            hello: list[Command] = []
            if options.get("password"):
                user = (options["username"],) if options.get("username") else ()
                hello.append(("AUTH", *user, options["password"]))
            if options.get("db"):
                hello.append(("SELECT", options["db"]))
            for reply in await link.send(hello) if hello else ():
                if isinstance(reply, libvalkey.ReplyError):
                    link.abort()
                    raise ValkeyError(str(reply))
        self._connection = link
        return link


def require(replies: list[Any], what: str) -> None:
    """Raise StateStoreError if one of the replies is an error."""
    for reply in replies:
        if isinstance(reply, libvalkey.ReplyError):
            raise StateStoreError(
                f"Valkey did not {what}: {reply}. Check FLAGGER_VALKEY_URL and the server."
            )


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    """Return a context that checks the server's certificate and name."""
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ConfigurationError(
            f"A certificate or key in FLAGGER_VALKEY_URL cannot be read: {error}."
        ) from error
    return context
