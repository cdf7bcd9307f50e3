"""A world whose streamer runs in this process, step by step, and messages written by hand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from confluent_kafka import Producer

from flagger.errors import StackError
from flagger.kafka import producer_config
from flagger.state.store import StateStore
from flagger.wire.messages import Decision
from loadtest.crash_world import CrashWorld, wait_until
from loadtest.topic_reader import read_topic
from streamer.metrics import StreamerMetrics
from streamer.pipeline import Pipeline

__all__ = ["START_MS", "StreamWorld", "message"]

START_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
_SENT_S = 30.0
_DONE_S = 60.0


def message(number: int, **changes: Any) -> bytes:
    """Return a transaction a second after the one before it, with changed fields."""
    fields = {
        "transaction_id": f"t{number}",
        "event_time": START_MS + number * 1_000,
        "customer_id": f"c{number % 7}",
        "terminal_id": f"m{number % 5}",
        "amount": 10.0 + number,
        **changes,
    }
    return json.dumps(fields).encode()


class StreamWorld(CrashWorld):
    """For tests that look at single messages; see `CrashWorld` for the rest."""

    def send(
        self, values: Sequence[bytes | None], *, topic: str | None = None, key: bytes = b"k"
    ) -> None:
        """Write messages as they are, all with one key; topic: the transactions by default."""
        producer = Producer(producer_config(self.settings))
        failures: list[Any] = []
        for value in values:
            producer.produce(
                topic or self.settings.transactions_topic,
                value,
                key,
                on_delivery=lambda error, _: failures.append(error) if error else None,
            )
        left = producer.flush(_SENT_S)
        producer.close()
        if left or failures:
            raise StackError(f"{left} messages were not sent; failures: {failures}.")

    def run_until(
        self,
        done: Callable[[StreamerMetrics], bool],
        *,
        clock_behind_ms: int = 0,
        **changes: Any,
    ) -> StreamerMetrics:
        """Run a streamer with changed settings in this process until `done` says so."""
        metrics = StreamerMetrics()
        settings = self.settings.model_copy(update=changes)
        stop = threading.Event()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                pipeline = Pipeline(
                    settings,
                    self.model,
                    metrics,
                    keep_going=lambda: not stop.is_set(),
                    clock_ms=lambda: time.time_ns() // 1_000_000 - clock_behind_ms,
                )
                pipeline.run()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, name="streamer")
        thread.start()
        try:
            wait_until(lambda: bool(errors) or done(metrics), _DONE_S, "what was waited for")
        finally:
            stop.set()
            thread.join()
        if errors:
            raise errors[0]
        return metrics

    def decided(self) -> list[Decision]:
        """Return what a reader of committed messages finds on the decisions topic."""
        return [msgspec.json.decode(value, type=Decision) for value in self.decisions()]

    def alerts(self) -> list[Decision]:
        """Return the same of the alerts topic."""
        values = read_topic(self.settings, self.settings.alerts_topic).values
        return [msgspec.json.decode(value, type=Decision) for value in values]

    @contextmanager
    def store(self) -> Iterator[StateStore]:
        """Open the state store."""
        store = StateStore(self.settings.valkey_url or "")
        try:
            yield store
        finally:
            store.close()
