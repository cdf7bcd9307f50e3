"""All payments from Kafka into the desk's lists of the newest ones; see `review.history`.

A thread of its own, with a group of its own: flags become cases whether or not this gets on.
"""

from __future__ import annotations

import logging
import threading
import time

from confluent_kafka import Message

from flagger.errors import BadMessageError, CaseStoreError, StateStoreError
from flagger.health import Health
from flagger.settings import Settings
from flagger.wire.messages import parse_transaction
from review.consumer import group_of
from review.history import Payment, PaymentHistory, payment_of
from review.intake import Intake
from review.metrics import DeskMetrics

__all__ = ["HistoryThread"]

logger = logging.getLogger(__name__)

_PART = "history"
_MAX_MESSAGES = 1_000
"""Most payments of a round."""
_POLL_S = _GATHER_S = 0.2


class HistoryThread:
    """Reads the transactions topic until it is closed.

    A payment's offset is committed after it is in the lists: after a crash some are read again,
    and readers of the lists see them once. While Valkey is away payments wait on their topic.

    Args:
        settings: Broker, topic and group.
        history: Where payments go.

    Attributes:
        failure: What ended the thread against its will; None: it runs.
    """

    def __init__(
        self, settings: Settings, history: PaymentHistory, metrics: DeskMetrics, health: Health
    ) -> None:
        self.failure: Exception | None = None
        self._history = history
        self._metrics = metrics
        self._health = health
        self._stop = threading.Event()
        group = f"{group_of(settings)}-history"
        self._intake = Intake(settings, settings.transactions_topic, group)
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it has not read waits on the topic."""
        self._stop.set()
        self._thread.join()
        self._health.goes_on(_PART)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._take(self._intake.read(_MAX_MESSAGES, _POLL_S, gather_s=_GATHER_S))
        except Exception as error:  # the main thread raises it
            self.failure = error
        finally:
            self._intake.close()
            self._history.close()

    def _take(self, messages: list[Message]) -> None:
        """Put payments into the lists, however long it takes."""
        if not messages:
            return
        payments = self._read(messages)

        def write() -> int:
            self._history.add(payments)
            return len(payments)

        written = self._intake.store(
            messages,
            write,
            on_trouble=self._trouble,
            keep_going=lambda: not self._stop.is_set(),
        )
        if written is not None:  # else told to end
            self._health.goes_on(_PART)
            self._metrics.history_payments.inc(written)

    def _read(self, messages: list[Message]) -> list[Payment]:
        now_ms = time.time_ns() // 1_000_000
        payments = []
        for message in messages:
            try:
                payments.append(payment_of(parse_transaction(message.value() or b"", now_ms)))
            except BadMessageError:  # a dead letter, or Avro and Protobuf: see docs/desk.md
                self._metrics.history_unreadable.inc()
        return payments

    def _trouble(self, error: CaseStoreError | StateStoreError) -> None:
        if not self._health.is_waiting_for(_PART):
            logger.error("%s", error)
        self._health.waits(_PART, str(error))
