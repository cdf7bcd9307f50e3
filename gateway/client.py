"""A small client of the gateway, blocking and asynchronous, with retries that are safe.

    with GatewayClient("https://gateway:8080", api_key="ffk_...") as gateway:
        answer = gateway.score(payment)
        if answer.decision == "decline": ...

Everything may be sent again: a transaction gets one decision and a label counts once, however
often they arrive. So whatever says "not now" (408, 429, 503, a balancer's 502 and 504, no
connection, no answer) is tried again, after the pause that the gateway asks for, as long as the
time allows. What says "never" is not. A payment waits no more than `_SCORE_ATTEMPT_S` for one
attempt: the gateway has answered long before, so the answer or the replica is lost.

The limits hold for the whole: name look-up, connecting, sending, and an answer that comes in drops.
A blocking socket can only limit each read of a byte or more, so the blocking client works on an
event loop, in a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import weakref
from collections.abc import Coroutine, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from flagger.errors import FlaggerError
from flagger.wire.messages import Label
from gateway.answers import Answer, BatchAnswer, BatchItem
from gateway.loop_thread import LoopThread, LoopThreadError
from gateway.problems import Problem

__all__ = ["AsyncGatewayClient", "GatewayClient", "GatewayError"]

_RETRIED = (408, 429, 502, 503, 504)
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_SCORE_ATTEMPT_S = 0.5
"""Five times the gateway's usual deadline; time for further attempts is left within `timeout_s`."""
_NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

_T = TypeVar("_T")


class GatewayError(FlaggerError):
    """The gateway gave no answer.

    Attributes:
        problem: What it said; None where it said nothing in time.
        status: HTTP status; 0 where there was none.
    """

    def __init__(self, text: str, status: int = 0, problem: Problem | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.problem = problem


class _Attempts:
    """When to try again, and when to give up."""

    def __init__(self, timeout_s: float) -> None:
        self._end_s = time.monotonic() + timeout_s
        self._pause_s = _FIRST_PAUSE_S

    def limit_s(self, attempt_s: float | None) -> float:
        """Return how long the next attempt may take; `attempt_s` at most."""
        left_s = max(self._end_s - time.monotonic(), 0.001)
        return left_s if attempt_s is None else min(left_s, attempt_s)

    def pause_s(self, asked_s: float, error: GatewayError) -> float:
        """Return the pause before the next attempt; raise `error` if no time is left for one."""
        jitter = random.uniform(0.5, 1.0)  # noqa: S311 - spreads callers, no secret
        pause_s = max(asked_s, self._pause_s * jitter)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if time.monotonic() + pause_s >= self._end_s:
            raise error
        return pause_s


def _judge(response: httpx.Response) -> tuple[GatewayError | None, float | None]:
    """Return what is wrong, and the seconds to wait before the next attempt (None: none)."""
    if response.is_success:
        return None, None
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
        text = problem.detail or problem.reason or problem.title
    except _NO_JSON:
        problem, text = None, response.content[:200].decode(errors="replace")
    error = GatewayError(
        f"The gateway answered {response.status_code}: {text}", response.status_code, problem
    )
    if response.status_code not in _RETRIED:
        return error, None
    return error, _retry_after_s(response.headers.get("retry-after", ""))


def _retry_after_s(text: str) -> float:
    """Return the seconds that `Retry-After` asks for, as a number or a date (RFC 9110, 10.2.3)."""
    if text.isdecimal():
        return float(text)
    try:
        wanted = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return 0.0
    return wanted.replace(tzinfo=UTC).timestamp() - time.time()  # an HTTP date is always GMT


def _read(content: bytes, kind: type[_T]) -> _T:
    """Return what the gateway answered; a page of something in between is no answer."""
    try:
        return msgspec.json.decode(content, type=kind)
    except _NO_JSON as error:
        raise GatewayError(f"This is no answer of the gateway: {error}.", 200) from error


def _no_answer(why: object) -> GatewayError:
    return GatewayError(f"The gateway did not answer: {why}.")


def _post(path: str, body: object) -> dict[str, Any]:
    return {
        "method": "POST",
        "url": path,
        "content": msgspec.json.encode(body),
        "headers": {"content-type": "application/json"},
    }


def _label(transaction_id: str, *, is_fraud: bool, more: Mapping[str, Any]) -> dict[str, Any]:
    body = {"transaction_id": transaction_id, "is_fraud": is_fraud, **more}
    return _post("/v1/feedback", body)


def _look_up(transaction_id: str) -> dict[str, Any]:
    return {"method": "GET", "url": f"/v1/decisions/{quote(transaction_id, safe='')}"}


def _options(url: str, api_key: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": None, **options}


class AsyncGatewayClient:
    """Client on an event loop. Every call raises GatewayError.

    Args:
        url: Where the gateway listens.
        api_key: Key or token; None where the gateway wants none.
        timeout_s: Limit of one call, with all its attempts.
        options: For httpx.AsyncClient: `verify` and `cert` for TLS, `limits`, ...
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout_s: float = 2.0, **options: Any
    ) -> None:
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(**_options(url, api_key, options))

    async def score(self, transaction: Mapping[str, Any]) -> Answer:
        """Return the decision about one transaction, which must have an id of its own."""
        request = _post("/v1/score", transaction)
        return _read(await self._call(_SCORE_ATTEMPT_S, **request), Answer)

    async def score_batch(self, transactions: Sequence[Mapping[str, Any]]) -> list[BatchItem]:
        """Return what came of each transaction, in their order; a 503 among them may be resent."""
        body = _post("/v1/score/batch", {"transactions": transactions})
        return _read(await self._call(None, **body), BatchAnswer).results

    async def decision(self, transaction_id: str) -> Answer:
        """Return what was decided about a transaction within the last day."""
        return _read(await self._call(None, **_look_up(transaction_id)), Answer)

    async def feedback(self, transaction_id: str, *, is_fraud: bool, **more: Any) -> Label:
        """Tell what a transaction turned out to be; `more`: further members of the body."""
        request = _label(transaction_id, is_fraud=is_fraud, more=more)
        return _read(await self._call(None, **request), Label)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, attempt_s: float | None, **request: Any) -> bytes:
        attempts = _Attempts(self._timeout_s)
        while True:
            limit_s = attempts.limit_s(attempt_s)
            asked_s: float | None = 0.0
            try:
                async with asyncio.timeout(limit_s):
                    response = await self._http.request(**request)
            except TimeoutError:
                error = _no_answer(f"nothing whole came within {limit_s:.3g} s")
            except httpx.RequestError as cause:  # also an answer whose compression is broken
                error = _no_answer(cause or type(cause).__name__)
            else:
                wrong, asked_s = _judge(response)
                if wrong is None:
                    return response.content
                error = wrong
            if asked_s is None:
                raise error
            await asyncio.sleep(attempts.pause_s(asked_s, error))


class GatewayClient:
    """Blocking client; may be shared by threads. Every call raises GatewayError.

    A process that forks uses it after the fork only, or makes one in each child.

    Args:
        url: Where the gateway listens.
        api_key: Key or token; None where the gateway wants none.
        timeout_s: Limit of one call, with all its attempts.
        options: For httpx.AsyncClient: `verify` and `cert` for TLS, `limits`, ...
    """

    def __init__(
        self, url: str, api_key: str | None = None, *, timeout_s: float = 2.0, **options: Any
    ) -> None:
        self._client = AsyncGatewayClient(url, api_key, timeout_s=timeout_s, **options)
        self._thread = LoopThread(at_end=self._client.close)
        # Neither a thread nor a connection outlives a client that is forgotten.
        weakref.finalize(self, self._thread.end)

    def score(self, transaction: Mapping[str, Any]) -> Answer:
        """Return the decision about one transaction, which must have an id of its own."""
        return self._run(self._client.score(transaction))

    def score_batch(self, transactions: Sequence[Mapping[str, Any]]) -> list[BatchItem]:
        """Return what came of each transaction, in their order; a 503 among them may be resent."""
        return self._run(self._client.score_batch(transactions))

    def decision(self, transaction_id: str) -> Answer:
        """Return what was decided about a transaction within the last day."""
        return self._run(self._client.decision(transaction_id))

    def feedback(self, transaction_id: str, *, is_fraud: bool, **more: Any) -> Label:
        """Tell what a transaction turned out to be; `more`: further members of the body."""
        return self._run(self._client.feedback(transaction_id, is_fraud=is_fraud, **more))

    def close(self) -> None:
        """Close the connections; calls under way in other threads end with GatewayError."""
        with contextlib.suppress(GatewayError):  # closed already, or another process's
            self._run(self._client.close())
        self._thread.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, _T]) -> _T:
        try:
            return self._thread.run(call)
        except LoopThreadError as error:
            raise GatewayError(f"This client cannot be used, {error}: make a new one.") from error
