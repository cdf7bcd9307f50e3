"""The payments that the load test sends, and what it demands of each answer.

Free of Locust, which patches the whole process that imports it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass

import msgspec

from flagger.policy import DECISIONS

__all__ = ["REPEAT_SHARE", "PaymentMaker", "Sent", "fault_of", "stages_ms"]

CUSTOMERS = 2_000
TERMINALS = 4_000
REPEAT_SHARE = 0.02
"""Share of requests that send an earlier payment once more, as callers do after a time-out."""
_REMEMBERED = 1_000
_SOURCES = ("model", "rules", "fallback", "list")
_COUNTRIES = (("DE", "EUR"), ("FR", "EUR"), ("GB", "GBP"), ("US", "USD"), ("BR", "BRL"))
_CATEGORIES = ("5411", "5812", "5732", "4111", "5541", "6011")
_CHANNELS = ("pos", "contactless", "ecom", "atm", "moto")


class Verdict(msgspec.Struct):
    """What the check reads of an answer."""

    transaction_id: str
    decision: str
    decision_source: str


_answers = msgspec.json.Decoder(Verdict)


@dataclass(frozen=True, slots=True)
class Sent:
    """A payment that was answered with 200.

    Attributes:
        transaction_id: Its id.
        body: The JSON as it was sent.
        answer: The JSON as it was answered; a repeat must get the same.
    """

    transaction_id: str
    body: bytes
    answer: bytes = b""


class PaymentMaker:
    """Makes payments of a population whose ids are the simulator's.

    Args:
        run: Part of each transaction id; another run needs another one.
        seed: Seed of everything else.
    """

    def __init__(self, run: str, seed: int = 0) -> None:
        self._run = run
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._made = 0
        self._answered: deque[Sent] = deque(maxlen=_REMEMBERED)

    def new(self) -> Sent:
        """Return a payment of this moment that was never sent before."""
        chance = self._random
        self._made += 1
        country, currency = chance.choice(_COUNTRIES)
        body = {
            "transaction_id": f"L{self._run}-{self._made}",
            "event_time": time.time_ns() // 1_000_000,
            "customer_id": f"C{chance.randrange(CUSTOMERS):07d}",
            # Busy terminals get most payments.
            "terminal_id": f"T{int(TERMINALS * chance.random() ** 2):07d}",
            "amount": round(min(chance.lognormvariate(3.3, 1.1), 20_000.0), 2),
            "currency": currency,
            "merchant_category": chance.choice(_CATEGORIES),
            "channel": chance.choice(_CHANNELS),
            "country": country,
        }
        return Sent(str(body["transaction_id"]), msgspec.json.encode(body))

    def next(self) -> Sent:
        """Return a new payment or, rarely, one that was answered before."""
        if self._answered and self._random.random() < REPEAT_SHARE:
            return self._random.choice(self._answered)
        return self.new()

    def answered(self, payment: Sent, answer: bytes) -> None:
        """Remember a payment's first answer."""
        self._answered.append(Sent(payment.transaction_id, payment.body, answer))


def fault_of(status: int, answer: bytes, payment: Sent) -> tuple[str, str]:
    """Return what is wrong with an answer ("": nothing) and its decision source.

    Args:
        status: HTTP status; 0 if no answer came.
        answer: The answer's body.
        payment: What was asked, with its first answer if this was a repeat.
    """
    if status != 200:
        return (f"status {status}" if status else "no answer"), ""
    try:
        verdict = _answers.decode(answer)
    except msgspec.DecodeError:
        return "an answer without decision", ""
    if verdict.transaction_id != payment.transaction_id:
        return "another transaction's answer", verdict.decision_source
    if verdict.decision not in DECISIONS:
        return "unknown decision", verdict.decision_source
    if verdict.decision_source not in _SOURCES:
        return "unknown decision source", verdict.decision_source
    if payment.answer and payment.answer != answer:
        return "a repeat answered differently", verdict.decision_source
    return "", verdict.decision_source


def stages_ms(server_timing: str) -> dict[str, float]:
    """Return milliseconds by stage of a Server-Timing header, as the gateway writes it.

    >>> stages_ms("state;dur=0.210, model;dur=1.500")
    {'state': 0.21, 'model': 1.5}
    """
    parts = (part.partition(";dur=") for part in server_timing.split(", ") if ";dur=" in part)
    return {name: float(duration) for name, _, duration in parts}
