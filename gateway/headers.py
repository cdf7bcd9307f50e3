"""Response headers that every answer has."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ALWAYS", "AnswerHeaders"]

ALWAYS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
_TLS_ONLY = [(b"strict-transport-security", b"max-age=31536000")]
_CLOSE = [(b"connection", b"close")]


class AnswerHeaders:
    """Adds security headers; while the gateway drains, asks callers to connect elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = ALWAYS
                if scope["scheme"] == "https":
                    extra = extra + _TLS_ONLY
                if scope["app"].state.door.draining:
                    extra = extra + _CLOSE
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        await self._app(scope, receive, send_with_headers)
