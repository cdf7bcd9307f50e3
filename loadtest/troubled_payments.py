"""Payments over Kafka and the gateway, twenty a second, with something wrong about many."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
from confluent_kafka import Producer

from flagger.kafka import producer_config
from flagger.settings import Settings

__all__ = ["TroubledPayments"]

_EVERY_S = 0.05
_FLUSH_S = 10.0
_MINUTE_MS, _HOUR_MS = 60_000, 3_600_000


class TroubledPayments:
    """Sends in a thread until it is closed.

    Of ten payments one is large (10,000); two go to the gateway; one is no JSON; two are a minute
    old when they are written; one is an hour older than its customer's last one. Once a second
    something that is no alert is written to the alerts topic; at first a flag of five hours ago.

    Args:
        settings: Broker and topics.
        gateway_url: Where the gateway listens.
    """

    def __init__(self, settings: Settings, gateway_url: str) -> None:
        self._settings, self._gateway_url = settings, gateway_url
        self._producer = Producer(producer_config(settings))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="payments")
        self._thread.start()

    def close(self) -> None:
        """Stop sending."""
        self._stop.set()
        self._thread.join()
        self._producer.flush(_FLUSH_S)
        self._producer.close()

    def _run(self) -> None:
        number = 0
        flag = payment(0) | {"decision": "review", "decision_source": "rules", "reasons": ["old"]}
        self._send_flag(json.dumps(flag).encode(), 5 * _HOUR_MS)
        with httpx.Client(trust_env=False) as client:
            client.post(f"{self._gateway_url}/v1/score", json={"amount": -1})
            while not self._stop.wait(_EVERY_S):
                number += 1
                if number % 5 == 0:
                    client.post(f"{self._gateway_url}/v1/score", json=payment(number))
                    continue
                # Again and again: rate() misses a counter's first event.
                if number % 20 == 1:
                    self._send_flag(b"no alert")
                self._send(number)

    def _send(self, number: int) -> None:
        sent = payment(number)
        now_ms = sent["event_time"]
        if number % 10 == 7:
            sent |= {"customer_id": payment(number - 5)["customer_id"]}
            sent["event_time"] = now_ms - _HOUR_MS
        self._producer.produce(
            self._settings.transactions_topic,
            b"no json" if number % 10 == 1 else json.dumps(sent).encode(),
            key=sent["customer_id"],
            timestamp=now_ms - (_MINUTE_MS if number % 5 == 3 else 0),
        )
        self._producer.poll(0)

    def _send_flag(self, value: bytes, age_ms: int = 0) -> None:
        now_ms = time.time_ns() // 1_000_000
        self._producer.produce(self._settings.alerts_topic, value, timestamp=now_ms - age_ms)


def payment(number: int) -> dict[str, Any]:
    """Return a payment of now; every tenth is large."""
    return {
        "transaction_id": f"monitoring-{number}",
        "event_time": time.time_ns() // 1_000_000,
        "customer_id": f"customer-{number % 20}",
        "terminal_id": f"terminal-{number % 5}",
        "amount": 10_000.0 if number % 10 == 0 else 12.5,
    }
