"""Locust: payments at given arrival rates against the gateway's POST /v1/score.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --arrival-rate 200 -u 100 -r 100

`flagger loadtest` starts this and judges the result; `open_loop_user` says how requests are due.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from typing import Any, ClassVar

from locust import task

from loadtest.open_loop_user import OpenLoopHttpUser
from loadtest.payments import check, stages_ms

logger = logging.getLogger(__name__)

_key = os.environ.get("GATEWAY_API_KEY")
_HEADERS = {"Authorization": f"Bearer {_key}"} if _key else {}


class Payer(OpenLoopHttpUser):
    """A connection of the payment service: sends what is due, then waits for its next turn."""

    host = "http://127.0.0.1:8080"
    made: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        # Several gateways, divided by commas, share the connections.
        hosts = self.host.split(",")
        self.client.base_url = hosts[next(self.made) % len(hosts)]

    @task
    def pay(self) -> None:
        """Send one payment and check the answer."""
        due_s = self.next_turn_s()
        payments = self.arrivals.payments
        payment = payments.next()
        posted = self.post(
            due_s,
            "/v1/score",
            payment.body.decode(),
            lambda status, answer: check(status, answer, payment),
            _HEADERS,
        )
        answer, fault = posted.answer, posted.checked.fault
        self.record(
            due_s,
            posted.sent_s,
            posted.done_s,
            posted.checked,
            is_repeat=bool(payment.answer),
            stages=stages_ms(posted.headers.get("server-timing", "")),
        )
        if not fault and not payment.answer:
            payments.answered(payment, answer)
        if fault and payment.answer:
            logger.error("%s: %s, first %s, now %s", fault, payment.body, payment.answer, answer)
