"""Payment services that never give up: they ask two gateways, again and again, whatever happens.

Each payment is asked about until there is an answer. Some are sent to two gateways at the same
moment, and some are sent again when they are long answered, as callers do that lost an answer.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

__all__ = ["Payers", "Payment", "Told"]

PATIENCE_S = 0.9
"""Of one attempt; then the payer asks another gateway."""
_PAUSE_S = 0.2
_GIVE_UP_S = 90.0
_TWICE_AT_ONCE = 0.3
_ASKED_LATER = 0.3
_LATER_S = 4.0
_CUSTOMERS = 400
_TERMINALS = 60
_DECIDED = "decided_by_stream"


@dataclass(frozen=True, slots=True)
class Told:
    """What a payer was told about a payment: what was decided, or that the stream did it."""

    decision: str | None
    decision_source: str | None
    score: float | None


@dataclass(slots=True)
class Payment:
    """One payment and what its payers were told.

    Attributes:
        body: The JSON object that is sent.
        first_s: When it was sent first, monotonic seconds.
        last_s: When the last answer came.
        told: The answers with a decision, and those that leave it to the decisions topic.
    """

    body: dict[str, Any]
    first_s: float
    last_s: float = 0.0
    told: list[Told] = field(default_factory=list)


class Payers:
    """Sends payments from a thread of its own; a context manager.

    Args:
        urls: The gateways.
        per_s: New payments a second.
        seed: Of the payments and of who is asked.

    Attributes:
        payments: Everything that was sent.
        statuses: How often each HTTP status was answered, problems with their kind.
    """

    def __init__(self, urls: Sequence[str], per_s: float, seed: int) -> None:
        self.payments: list[Payment] = []
        self.statuses: Counter[str] = Counter()
        self._urls = urls
        self._per_s = per_s
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._enough = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="payers")

    def __enter__(self) -> Payers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def finish(self) -> None:
        """Send no more, and wait until all have an answer; raises what went wrong."""
        self._enough.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._pay())
        except BaseException as error:
            self._error = error

    async def _pay(self) -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(timeout=PATIENCE_S, trust_env=False, limits=limits) as client,
            asyncio.TaskGroup() as group,
        ):
            number = 0
            while not self._enough.is_set():
                payment = self._new(number)
                number += 1
                self.payments.append(payment)
                first = self._random.randrange(len(self._urls))
                group.create_task(self._ask(client, payment, first))
                if self._random.random() < _TWICE_AT_ONCE:
                    group.create_task(self._ask(client, payment, first + 1))
                if self._random.random() < _ASKED_LATER:
                    later_s = self._random.uniform(0, _LATER_S)
                    group.create_task(self._ask(client, payment, first + 1, later_s))
                await asyncio.sleep(1 / self._per_s)

    def _new(self, number: int) -> Payment:
        body = {
            "transaction_id": f"chaos-{number}",
            "event_time": time.time_ns() // 1_000_000,
            "customer_id": f"customer-{self._random.randrange(_CUSTOMERS)}",
            "terminal_id": f"terminal-{self._random.randrange(_TERMINALS)}",
            "amount": round(self._random.lognormvariate(3, 1.5), 2),
            "channel": "ecom",
        }
        return Payment(body, time.monotonic())

    async def _ask(
        self, client: httpx.AsyncClient, payment: Payment, gateway: int, wait_s: float = 0.0
    ) -> None:
        """Ask until there is an answer, each time at the next gateway."""
        await asyncio.sleep(wait_s)
        end_s = time.monotonic() + _GIVE_UP_S
        while time.monotonic() < end_s:
            url = urllib.parse.urljoin(self._urls[gateway % len(self._urls)], "/v1/score")
            gateway += 1
            try:
                response = await client.post(url, json=payment.body)
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
            else:
                if self._take(payment, response):
                    return
            await asyncio.sleep(_PAUSE_S)
        raise TimeoutError(f"{payment.body['transaction_id']} had no answer in {_GIVE_UP_S:.0f} s")

    def _take(self, payment: Payment, response: httpx.Response) -> bool:
        """Note an answer; return True if it is final."""
        answer = msgspec.json.decode(response.content)
        if response.status_code == 200:
            told = Told(answer["decision"], answer["decision_source"], answer["score"])
            self.statuses["200"] += 1
        else:
            kind = answer["type"].rsplit(":", 1)[-1]
            self.statuses[f"{response.status_code} {kind}"] += 1
            if kind != _DECIDED:
                return False
            told = Told(None, None, None)
        payment.told.append(told)
        payment.last_s = time.monotonic()
        return True
