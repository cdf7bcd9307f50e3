"""The desk's front door: nobody reaches the pages, or their web socket, without a login.

A login is a cookie that scripts cannot read and other sites cannot send; the case store holds its
hash. The form below is the only page that is open, beside /healthz.
"""

from __future__ import annotations

import asyncio
import html
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flagger.errors import FlaggerError
from review.logins import Logins

__all__ = ["COOKIE", "LoginRequired", "LoginRoutes", "token_of"]

logger = logging.getLogger(__name__)

COOKIE = "flagger_desk"
_OPEN_PATHS = {"/login", "/healthz"}
_OPEN_FOLDER = "/static/"
"""Streamlit's own scripts and fonts, a hundred files a page; there is no data in them."""
_MAX_FORM_BYTES = 4_096
MAX_FAILURES = 5
"""Wrong passwords of one name from one address within _FAILURES_S; then it has to wait."""
_FAILURES_S = 300.0
_MAX_REMEMBERED = 10_000
_HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>Review desk</title><style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center;
  min-height: 100vh; margin: 0; background: light-dark(#f4f6f8, #101418);
  color: light-dark(#1b2430, #e6eaef); }}
form {{ width: 20rem; padding: 2rem; border-radius: 12px; background: light-dark(#fff, #181e25);
  border: 1px solid light-dark(#dde3ea, #2a333d); }}
h1 {{ font-size: 1.25rem; margin: 0; }} p {{ margin: 0 0 1.25rem; color: light-dark(#5a6675,
  #9aa7b5); font-size: .9rem; }}
label {{ display: block; font-size: .85rem; margin-top: .75rem; }}
input {{ width: 100%; box-sizing: border-box; font: inherit; padding: .5rem .6rem;
  margin-top: .2rem; border-radius: 8px; border: 1px solid light-dark(#c3ccd6, #3a4653);
  background: transparent; color: inherit; }}
button {{ width: 100%; margin-top: 1.25rem; padding: .6rem; font: inherit; font-weight: 600;
  border: 0; border-radius: 8px; background: #2563c9; color: #fff; cursor: pointer; }}
.wrong {{ color: light-dark(#b3261e, #ff8f86); margin: 1rem 0 0; }}
</style></head><body><form method="post" action="login">
<h1>Review desk</h1><p>Fraud Flagger</p>
<label>Name<input name="name" autocomplete="username" required autofocus></label>
<label>Password<input name="password" type="password" autocomplete="current-password" required>
</label>{wrong}<button>Log in</button></form></body></html>"""


def token_of(cookies: str) -> str:
    """Return the desk's token in a Cookie header; "" if there is none."""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


class LoginRequired:
    """ASGI middleware that lets only the logged in through."""

    def __init__(self, app: ASGIApp, logins: Logins) -> None:
        self._app = app
        self._logins = logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] == "lifespan" or _is_open(scope["path"]):
            await self._app(scope, receive, _with_headers(send))
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        token = token_of(headers.get(b"cookie", ""))
        try:
            analyst = await asyncio.to_thread(self._logins.find, token) if token else None
        except FlaggerError as error:
            logger.error("%s", error)
            answer: Response = PlainTextResponse("The case store is away.\n", 503)
        else:
            if analyst is not None:
                await self._app(scope, receive, _with_headers(send))
                return
            answer = RedirectResponse("login", 303)
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 4401})
            return
        await answer(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or (path.startswith(_OPEN_FOLDER) and ".." not in path)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending


class LoginRoutes:
    """The form, and the way out.

    Args:
        logins: Where logins are kept.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(self, logins: Logins, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._logins = logins
        self._clock_s = clock_s
        self._failures: OrderedDict[tuple[str, str], list[float]] = OrderedDict()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/login", self._form, methods=["GET"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["GET"]),
            Route("/healthz", _healthz, methods=["GET"]),
        ]

    async def _form(self, _request: Request) -> Response:
        return _page("")

    async def _login(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_FORM_BYTES:
                return _page("That is too long.", 413)
        fields = parse_qs(body.decode(errors="replace"))
        name, password = (fields.get(key, [""])[0] for key in ("name", "password"))
        caller = (name, request.client.host if request.client else "")
        if self._has_to_wait(caller):
            return _page("Too many wrong passwords. Wait five minutes.", 429)
        token = await asyncio.to_thread(self._logins.start, name, password)
        if token is None:
            self._remember_failure(caller)
            return _page("Name or password is wrong.", 401)
        self._failures.pop(caller, None)
        answer = RedirectResponse("./", 303)
        answer.set_cookie(
            COOKIE,
            token,
            max_age=self._logins.session_ms // 1000,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def _logout(self, request: Request) -> Response:
        await asyncio.to_thread(self._logins.end, request.cookies.get(COOKIE, ""))
        answer = RedirectResponse("login", 303)
        answer.delete_cookie(COOKIE)
        return answer

    def _has_to_wait(self, caller: tuple[str, str]) -> bool:
        since_s = self._clock_s() - _FAILURES_S
        recent = [at for at in self._failures.get(caller, []) if at > since_s]
        return len(recent) >= MAX_FAILURES

    def _remember_failure(self, caller: tuple[str, str]) -> None:
        self._failures.setdefault(caller, []).append(self._clock_s())
        del self._failures[caller][:-MAX_FAILURES]
        self._failures.move_to_end(caller)
        if len(self._failures) > _MAX_REMEMBERED:
            self._failures.popitem(last=False)


def _page(wrong: str, status: int = 200) -> Response:
    said = f'<p class="wrong" role="alert">{html.escape(wrong)}</p>' if wrong else ""
    return HTMLResponse(_PAGE.format(wrong=said), status, {"Cache-Control": "no-store"})


async def _healthz(_request: Request) -> Response:
    return PlainTextResponse("ok\n")
