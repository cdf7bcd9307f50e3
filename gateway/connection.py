"""One HTTP connection: uvicorn's, with limits on what uvicorn takes without any.

The application limits bodies. Before it hears of a request, its head (request line and headers) has
to arrive; uvicorn would wait for it for ever and keep whatever comes, and a header of 100 MB keeps
the event loop busy for seconds. Nobody has shown a key by then, so these limits hold for everybody.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.headers import ALWAYS
from gateway.problems import ProblemError

__all__ = ["HEAD_LIMIT_BYTES", "HEAD_LIMIT_S", "KEEP_ALIVE_S", "UNREAD_LIMIT_BYTES", "Connection"]

HEAD_LIMIT_BYTES = 32 * 1024
"""Most bytes of a request line and its headers; an identity provider's token takes 1 to 4 KiB."""
HEAD_LIMIT_S = 5.0
"""How long a head may take to arrive, a new connection may stay silent, and the rest of a body may
take whose request was refused."""
UNREAD_LIMIT_BYTES = 2 * 1024 * 1024
"""Most bytes of such a rest: a caller who sends a whole body that is too large still reads why."""
KEEP_ALIVE_S = 75
"""How long a connection may be idle between requests. More than the 60 s of common balancers: they
close first, and no request is sent into a connection that is just ending."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits on heads and on bodies that nobody reads."""

    _in_head = False
    _in_body = False
    _messages = 0
    _head_bytes = 0
    _unread_bytes = 0
    _timer: asyncio.TimerHandle | None = None
    _why = "bad_request"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a first head."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived, within the limits."""
        before = self._messages
        super().data_received(data)
        has_ended = self._messages > before
        if self._in_body or (has_ended and not self._in_head) or self.transport.is_closing():
            return
        # It ended within a head, or in empty lines before one.
        self._head_bytes += 0 if has_ended else len(data)
        if self._head_bytes > HEAD_LIMIT_BYTES:
            self._refuse("head_too_large")
        elif self._timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._in_head = True
        self._unread_bytes = 0

    def on_headers_complete(self) -> None:
        """A head is complete: begin with the request."""
        self._in_head, self._in_body = False, True
        self._head_bytes = 0
        self._stop_timer()
        if len(self.url) + sum(len(n) + len(v) for n, v in self.headers) > HEAD_LIMIT_BYTES:
            self._why = "head_too_large"
            raise ValueError(self._why)  # the parser stops, and `send_400_response` follows
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body, or pass it over where the request has its answer already."""
        if self.cycle.response_complete:
            self._unread_bytes += len(body)
            if self._unread_bytes > UNREAD_LIMIT_BYTES:
                self.transport.close()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request has arrived whole."""
        super().on_message_complete()
        self._in_body = False
        self._messages += 1
        self._stop_timer()

    def on_response_complete(self) -> None:
        """An answer has left."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(self._why)

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEAD_LIMIT_S, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self._in_head:
            self._refuse("slow_request")
        elif not self._in_body or self.cycle.response_complete:
            self.transport.close()

    def _refuse(self, kind: str) -> None:
        """Answer a problem, unless an earlier request still waits for its answer, and close."""
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "door"):
            app.state.door.metrics.count_error(kind)
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            answer = ProblemError(kind, _DETAILS[kind]).response()
            headers = [*self.server_state.default_headers, *answer.raw_headers, *ALWAYS]
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            head = STATUS_LINE[answer.status_code] + lines + b"connection: close\r\n\r\n"
            self.transport.write(head + bytes(answer.body))
        self.transport.close()


_DETAILS = {
    "bad_request": "This is no HTTP request.",
    "head_too_large": f"The request line and the headers have at most {HEAD_LIMIT_BYTES:,} bytes.",
    "slow_request": "The headers took too long to arrive.",
}
