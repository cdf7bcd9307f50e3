"""Locust: payments at given arrival rates against the gateway's POST /v1/score.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080 --arrival-rate 200 -u 100 -r 100

`flagger loadtest` starts this and judges the result; `open_loop_user` says how requests are due.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator
from typing import Any, ClassVar

from locust import FastHttpUser, task

from loadtest.open_loop_user import OpenLoopUser
from loadtest.payments import check, stages_ms

logger = logging.getLogger(__name__)

_HEADERS = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
if _key := os.environ.get("GATEWAY_API_KEY"):
    _HEADERS["Authorization"] = f"Bearer {_key}"


class Payer(OpenLoopUser, FastHttpUser):
    """A connection of the payment service: sends what is due, then waits for its next turn."""

    network_timeout = connection_timeout = 5.0
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
        sent_s = time.perf_counter()
        with self.client.post(
            "/v1/score", data=payment.body.decode(), headers=_HEADERS, catch_response=True
        ) as response:
            done_s = time.perf_counter()
            answer = response.content or b""
            checked = check(response.status_code, answer, payment)
            fault = checked.fault
            response.request_meta["response_time"] = (done_s - due_s) * 1000
            if fault:
                response.failure(fault)
            else:
                response.success()
            stages = stages_ms((response.headers or {}).get("server-timing", ""))
        self.record(due_s, sent_s, done_s, checked, is_repeat=bool(payment.answer), stages=stages)
        if not fault and not payment.answer:
            payments.answered(payment, answer)
        if fault and payment.answer:
            logger.error("%s: %s, first %s, now %s", fault, payment.body, payment.answer, answer)
