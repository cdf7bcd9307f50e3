"""Labels from the outbox to Kafka: at least once, in the order of their making.

In a thread of its own, because Kafka may make it wait while flags still come in.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from flagger.errors import CaseStoreError
from flagger.health import Health
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.wire import messages
from review.metrics import DeskMetrics
from review.store import CaseStore
from review.tables import Label

__all__ = ["SOURCE", "LabelRelay", "LabelThread", "encode_label"]

logger = logging.getLogger(__name__)

SOURCE = "analyst"
"""Where the desk's labels come from, on the labels topic. Who decided stays in the audit trail."""
MAX_LABELS = 500
"""Most labels of one round."""
_ROUND_S = 0.1
"""How often the outbox is looked at: what a label waits for at most."""
_RETRY_S = 1.0
_DELIVERY_MS = 10_000
"""How long Kafka may take for a label; then it is tried again in a later round."""


def encode_label(label: Label) -> bytes:
    """Return the JSON message of a label, as `flagger.wire.messages.Label` reads it."""
    return msgspec.json.encode(
        messages.Label(
            transaction_id=label.transaction_id,
            is_fraud=label.is_fraud,
            source=SOURCE,
            labelled_at=label.labelled_at_ms,
            terminal_id=label.terminal_id,
            event_time=label.event_time_ms,
        )
    )


class LabelRelay:
    """Sends what waits and marks what the broker has.

    A label whose acknowledgement was lost is sent again; readers ignore the repeat. Where one
    fails, those after it are sent again too, so that a correction never ends up before what it
    corrects.

    Args:
        settings: Broker and topic.
        store: The outbox.
        clock_ms: Returns the current time, epoch milliseconds.
        delivery_ms: How long Kafka may take for a label; then it is tried again in a later round.
    """

    def __init__(
        self,
        settings: Settings,
        store: CaseStore,
        metrics: DeskMetrics,
        clock_ms: Callable[[], int],
        *,
        delivery_ms: int = _DELIVERY_MS,
    ) -> None:
        self._topic = settings.labels_topic
        self._delivery_s = delivery_ms / 1000
        self._store = store
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._failure: KafkaError | None = None
        self._delivered: list[int] = []
        self._producer = Producer(
            producer_config(settings)
            | {
                "message.timeout.ms": delivery_ms,
                "linger.ms": 0,
                # Analysts' labels are few; without a topic they wait instead of making one.
                "allow.auto.create.topics": False,
            }
        )

    def send_waiting(self) -> str | None:
        """Send the labels that wait; return why some still do, or None.

        Takes up to about 10 s where Kafka does not answer.

        Raises:
            CaseStoreError: The database is away.
        """
        waiting = self._store.waiting_labels(MAX_LABELS)
        if not waiting:
            self._metrics.labels_waiting.set(0)
            return None
        self._failure, self._delivered = None, []
        try:
            for label in waiting:
                self._producer.produce(
                    self._topic,
                    encode_label(label),
                    partition=0,
                    on_delivery=self._remember(label.id),
                )
        except (KafkaException, BufferError) as error:
            logger.warning("A label could not be handed over: %s", error)
        self._producer.flush(2 * self._delivery_s)
        sent = _unbroken([label.id for label in waiting], set(self._delivered))
        if sent:
            self._store.mark_sent(sent, self._clock_ms())
            self._metrics.labels_sent.inc(len(sent))
        left = len(waiting) - len(sent)
        self._metrics.labels_waiting.set(self._store.count_waiting_labels())
        if not left:
            return None
        self._metrics.label_errors.inc(left)
        return (
            f"Kafka did not take {left} labels for {self._topic}"
            f"{f': {self._failure.str()}' if self._failure else ''}. They are tried again."
        )

    def close(self) -> None:
        """Close the connection; what is not acknowledged stays in the outbox."""
        self._producer.close()

    def _remember(self, label_id: int) -> Callable[[KafkaError | None, Message], None]:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self._delivered.append(label_id)
            else:
                self._failure = self._failure or error

        return delivered


def _unbroken(ids: list[int], delivered: set[int]) -> list[int]:
    """Return the ids up to the first that was not delivered.

    >>> _unbroken([1, 2, 3], {1, 3})
    [1]
    """
    for place, label_id in enumerate(ids):
        if label_id not in delivered:
            return ids[:place]
    return ids


class LabelThread:
    """Runs a relay in the background while `active` is set.

    Attributes:
        active: Set where this process is the one that sends labels.
        failure: What ended the thread against its will; None: it runs.
    """

    def __init__(self, relay: LabelRelay, metrics: DeskMetrics, health: Health) -> None:
        self.active = threading.Event()
        self.failure: Exception | None = None
        self._relay = relay
        self._metrics = metrics
        self._health = health
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="labels", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; a label under way is waited for, for 20 s at most."""
        self._stopping.set()
        self._thread.join()
        self._relay.close()

    def _run(self) -> None:
        try:
            pause_s = _ROUND_S
            while not self._stopping.wait(pause_s):
                pause_s = _ROUND_S if not self.active.is_set() or self._round() else _RETRY_S
        except Exception as error:
            self.failure = error

    def _round(self) -> bool:
        """Send what waits; return False if something is in the way."""
        try:
            why = self._relay.send_waiting()
        except CaseStoreError as error:
            self._metrics.store_errors.inc()
            why = str(error)
        if why is None:
            self._health.goes_on("labels")
            return True
        if not self._health.is_waiting_for("labels"):
            logger.error("%s", why)
        self._health.waits("labels", why)
        return False
