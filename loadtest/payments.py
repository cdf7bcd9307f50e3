"""The payments that the load test sends, and what it demands of each answer.

Free of Locust, which patches the whole process that imports it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from flagger.policy import APPROVE, DECISIONS

__all__ = [
    "APPROVED",
    "EXPLAINED",
    "REPEAT_SHARE",
    "UNEXPLAINED",
    "Checked",
    "PaymentMaker",
    "Sent",
    "check",
    "stages_ms",
]

CUSTOMERS = 2_000
TERMINALS = 4_000
REPEAT_SHARE = 0.02
"""Share of requests that send an earlier payment once more, as callers do after a time-out."""
_BUSY_CUSTOMERS = 40
_RARE_CUSTOMERS = 1_000_000
_REMEMBERED = 1_000
_SOURCES = ("model", "rules", "fallback", "list")
_COUNTRIES = (("DE", "EUR"), ("FR", "EUR"), ("GB", "GBP"), ("US", "USD"), ("BR", "BRL"))
_CATEGORIES = ("5411", "5812", "5732", "4111", "5541", "6011")
APPROVED, EXPLAINED, UNEXPLAINED = "approved", "explained", "unexplained"
"""What the model's decision was: an approval; a review or a decline with the reasons behind the
score; one for which only the threshold is named, because no explanation came in time."""
_UNEXPLAINING = {"score", "brake"}
"""Codes of the threshold's reason and the brake's, which take no explanation. Spelled out: their
modules load what a generator of load has no use for."""
_CHANNELS = ("pos", "contactless", "ecom", "atm", "moto")


class Verdict(msgspec.Struct):
    """What the check reads of an answer."""

    transaction_id: str
    decision: str
    decision_source: str
    reason_codes: list[str] = []
    model_version: str | None = None


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
        busy_share: Share of payments by a few customers, who pay so often that a model suspects
            them; the others then pay hardly ever. 0: all pay alike.
    """

    def __init__(self, run: str, seed: int = 0, busy_share: float = 0.0) -> None:
        self._run = run
        self._busy_share = busy_share
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
            "customer_id": f"C{self._customer():07d}",
            # Busy terminals get most payments.
            "terminal_id": f"T{int(TERMINALS * chance.random() ** 2):07d}",
            "amount": round(min(chance.lognormvariate(3.3, 1.1), 20_000.0), 2),
            "currency": currency,
            "merchant_category": chance.choice(_CATEGORIES),
            "channel": chance.choice(_CHANNELS),
            "country": country,
        }
        return Sent(str(body["transaction_id"]), msgspec.json.encode(body))

    def _customer(self) -> int:
        chance = self._random
        if not self._busy_share:
            return chance.randrange(CUSTOMERS)
        if chance.random() < self._busy_share:
            return chance.randrange(_BUSY_CUSTOMERS)
        return _BUSY_CUSTOMERS + chance.randrange(_RARE_CUSTOMERS)

    def next(self) -> Sent:
        """Return a new payment or, rarely, one that was answered before."""
        if self._answered and self._random.random() < REPEAT_SHARE:
            return self._random.choice(self._answered)
        return self.new()

    def answered(self, payment: Sent, answer: bytes) -> None:
        """Remember a payment's first answer."""
        self._answered.append(Sent(payment.transaction_id, payment.body, answer))


class Checked(NamedTuple):
    """What an answer is worth.

    Attributes:
        fault: What is wrong with it; "": nothing.
        source: Its decision source; "" if it tells none.
        kind: `APPROVED`, `EXPLAINED` or `UNEXPLAINED`; "" where this request had no decision of
            the model made: it failed, repeats an earlier one, or others decided.
        version: The model version that made the decision; "" where `kind` is.
    """

    fault: str
    source: str = ""
    kind: str = ""
    version: str = ""


def check(status: int, answer: bytes, payment: Sent) -> Checked:
    """Look at an answer.

    Args:
        status: HTTP status; 0 if no answer came.
        answer: The answer's body.
        payment: What was asked, with its first answer if this was a repeat.
    """
    if status != 200:
        return Checked(f"status {status}" if status else "no answer")
    try:
        verdict = _answers.decode(answer)
    except msgspec.DecodeError:
        return Checked("an answer without decision")
    source = verdict.decision_source
    if verdict.transaction_id != payment.transaction_id:
        return Checked("another transaction's answer", source)
    if verdict.decision not in DECISIONS:
        return Checked("unknown decision", source)
    if source not in _SOURCES:
        return Checked("unknown decision source", source)
    if payment.answer and payment.answer != answer:
        return Checked("a repeat answered differently", source)
    if payment.answer or source != "model":
        return Checked("", source)
    return Checked("", source, _kind_of(verdict), verdict.model_version or "")


def _kind_of(verdict: Verdict) -> str:
    if verdict.decision == DECISIONS[APPROVE]:
        return APPROVED
    return EXPLAINED if set(verdict.reason_codes) - _UNEXPLAINING else UNEXPLAINED


def stages_ms(server_timing: str) -> dict[str, float]:
    """Return milliseconds by stage of a Server-Timing header, as the gateway writes it.

    >>> stages_ms("state;dur=0.210, model;dur=1.500")
    {'state': 0.21, 'model': 1.5}
    """
    parts = (part.partition(";dur=") for part in server_timing.split(", ") if ";dur=" in part)
    return {name: float(duration) for name, _, duration in parts}
