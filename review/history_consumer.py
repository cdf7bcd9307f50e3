"""All payments from Kafka into the desk's lists of the newest ones; see `review.history`.

A thread of its own, with a group of its own: flags become cases whether or not this gets on.
"""

from __future__ import annotations

import logging
import threading
import time

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from flagger.errors import BadMessageError, StackError, StateStoreError
from flagger.health import Health
from flagger.kafka import is_fatal
from flagger.settings import Settings
from flagger.wire.messages import parse_transaction
from review.consumer import consumer_config, group_of, stay_in_group
from review.history import Payment, PaymentHistory, payment_of
from review.metrics import DeskMetrics

__all__ = ["HistoryThread"]

logger = logging.getLogger(__name__)

_PART = "history"
_MAX_MESSAGES = 1_000
"""Most payments of a round."""
_POLL_S = 0.2
_RETRY_S = 1.0


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
        self._topic = settings.transactions_topic
        self._history = history
        self._metrics = metrics
        self._health = health
        self._stop = threading.Event()
        group = f"{group_of(settings)}-history"
        self._consumer = Consumer(consumer_config(settings, group))
        self._consumer.subscribe([self._topic])
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
                self._take(self._consumer.consume(_MAX_MESSAGES, _POLL_S))
        except Exception as error:  # the main thread raises it
            self.failure = error
        finally:
            self._consumer.close()
            self._history.close()

    def _take(self, found: list[Message]) -> None:
        messages = []
        for message in found:
            error = message.error()
            if error is None:
                messages.append(message)
            elif is_fatal(error):
                raise StackError(f"Kafka refuses to deliver {self._topic}: {error}.")
            else:  # the topic is not there yet, a broker is away: librdkafka tries again
                logger.warning("Kafka: %s", error)
        if not messages:
            return
        if not self._store(self._read(messages)):
            return  # told to end: they are read again
        ends = {(m.topic(), m.partition()): m.offset() + 1 for m in messages}
        try:
            self._consumer.commit(
                offsets=[TopicPartition(t, p, end) for (t, p), end in ends.items()],
                asynchronous=False,
            )
        except KafkaException as error:  # they are read again
            logger.warning("Offsets of %s are not committed: %s", self._topic, error)

    def _read(self, messages: list[Message]) -> list[Payment]:
        now_ms = time.time_ns() // 1_000_000
        payments = []
        for message in messages:
            try:
                payments.append(payment_of(parse_transaction(message.value() or b"", now_ms)))
            except BadMessageError:  # a dead letter, or Avro and Protobuf: see docs/desk.md
                self._metrics.history_unreadable.inc()
        return payments

    def _store(self, payments: list[Payment]) -> bool:
        """Return True once the payments are in the lists, False if told to end before."""
        while True:
            try:
                self._history.add(payments)
            except StateStoreError as error:
                if not self._health.is_waiting_for(_PART):
                    logger.error("%s", error)
                self._health.waits(_PART, str(error))
                if self._stop.is_set():
                    return False
                stay_in_group(self._consumer, _RETRY_S)
            else:
                break
        self._health.goes_on(_PART)
        self._metrics.history_payments.inc(len(payments))
        return True
