"""Reads the topics of decisions and labels as they grow, and shows what mature days say.

Nothing is stored: a start reads as many days back as are looked at. Until the end of both topics is
reached nothing is shown, for half of the decisions or labels would say something wrong.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from flagger.errors import BadMessageError, StackError
from flagger.features.hashing import key_of
from flagger.health import Health
from flagger.kafka import client_config, is_fatal
from flagger.policy import APPROVE, DECISIONS
from flagger.settings import Settings
from flagger.state.records import DAY_MS
from flagger.wire.messages import parse_label
from train.labels_metrics import LabelsMetrics
from train.matured import DecisionFields
from train.maturing import MaturingDays

__all__ = ["LabelsPlan", "LabelsWatch"]

_log = logging.getLogger(__name__)

_MESSAGES = 5_000
"""Most messages of a round."""
_POLL_S = 0.5
_SHOW_S = 5.0
_TOPICS_S = 30.0
"""How often new topics and partitions are looked for."""
_ANSWER_S = 10.0
Place = tuple[str, int]


@dataclass(frozen=True)
class LabelsPlan:
    """What is judged, and what is too bad.

    Attributes:
        maturity_days: A day is judged once the newest decision is so many days younger.
        window_days: So many mature days are judged together.
        least_precision: Below is an alarm; 0: never.
        least_recall: The same.
        least_frauds: Fewer frauds raise no alarm: chance would.
    """

    maturity_days: int = 14
    window_days: int = 28
    least_precision: float = 0.0
    least_recall: float = 0.0
    least_frauds: int = 100


class LabelsWatch:
    """Follows both topics until it is told to end.

    Args:
        settings: Broker and topics.
        plan: What is judged.
        metrics: Where it shows.
        health: Takes note of what is waited for.
        keep_going: Asked in every round; False ends `run`.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        plan: LabelsPlan,
        metrics: LabelsMetrics,
        health: Health,
        *,
        keep_going: Callable[[], bool],
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._takers = {
            settings.decisions_topic: self._decision,
            settings.labels_topic: self._label,
        }
        self._plan = plan
        self._metrics = metrics
        self._health = health
        self._keep_going = keep_going
        self._clock_ms = clock_ms
        self._days = MaturingDays(
            plan.maturity_days, plan.window_days, on_forgotten=self._forgotten
        )
        self._decisions = msgspec.json.Decoder(DecisionFields)
        self._followed: set[Place] = set()
        self._behind: set[Place] = set()
        self._topics_s = self._shown_s = float("-inf")
        self._consumer = Consumer(
            client_config(settings)
            | {
                "group.id": "flagger-labels-watch",  # never joined, nothing is committed
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
            }
        )

    def run(self) -> None:
        """Read until `keep_going` says no.

        Raises:
            StackError: Kafka will never deliver to this reader.
        """
        try:
            while self._keep_going():
                self._health.came_round()
                self._follow()
                if self._followed:
                    self._take(self._consumer.consume(_MESSAGES, _POLL_S))
                else:
                    time.sleep(_POLL_S)
                self._show()
        finally:
            self._consumer.close()

    def _follow(self) -> None:
        """Look for topics and partitions that are new, and read them from so many days back."""
        now_s = time.monotonic()
        if now_s - self._topics_s < (_TOPICS_S if self._followed else _POLL_S):
            return
        self._topics_s = now_s
        try:
            topics = self._consumer.list_topics(timeout=_ANSWER_S).topics
            missing = [name for name in self._takers if name not in topics]
            if missing:
                self._health.waits("topics", f"Kafka shows no topic {', '.join(missing)} yet.")
                return
            new = {(t, p) for t in self._takers for p in topics[t].partitions} - self._followed
            if new:
                since_ms = self._clock_ms() - self._kept_ms
                asked = [TopicPartition(topic, part, since_ms) for topic, part in sorted(new)]
                found = self._consumer.offsets_for_times(asked, timeout=_ANSWER_S)
                self._begin(found)
        except KafkaException as error:  # a broker is away: asked again
            if is_fatal(error.args[0]):
                raise StackError(f"Kafka refuses the labels watch: {error}.") from error
            self._health.waits("topics", f"Kafka does not answer: {error}")
            return
        self._health.goes_on("topics")

    def _begin(self, places: list[TopicPartition]) -> None:
        for place in places:
            if place.error is not None:
                raise KafkaException(place.error)
            if place.offset < 0:  # nothing so young: all there is, which is little or old
                place.offset = OFFSET_BEGINNING
        self._consumer.incremental_assign(places)
        new = {(place.topic, place.partition) for place in places}
        self._followed |= new
        self._behind |= new
        self._health.waits("reading", "What the topics hold already is being read.")

    @property
    def _kept_ms(self) -> int:
        return (self._plan.maturity_days + self._plan.window_days) * DAY_MS

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            topic, error = message.topic() or "", message.error()
            if error is None:
                self._metrics.messages.labels(topic).inc()
                try:
                    self._takers[topic](message.value() or b"")
                except (BadMessageError, msgspec.MsgspecError, ValueError):
                    self._metrics.refused.labels(topic).inc()
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
                self._behind.discard((topic, message.partition() or 0))
                if not self._behind:
                    self._health.goes_on("reading")
            elif is_fatal(error):
                raise StackError(f"Kafka refuses the labels watch: {error}.")
            else:  # librdkafka tries again
                _log.warning("Kafka: %s", error)

    def _decision(self, value: bytes) -> None:
        found = self._decisions.decode(value)
        code = DECISIONS.index(found.decision)
        key = key_of(found.transaction_id)
        self._days.decide(key, found.event_time, code, is_flagged=code != APPROVE)

    def _label(self, value: bytes) -> None:
        found = parse_label(value, self._clock_ms())
        self._days.label(key_of(found.transaction_id), found.event_time_ms, is_fraud=found.is_fraud)

    def _forgotten(self, _day: int) -> None:
        self._metrics.forgotten_days.inc()

    def _show(self) -> None:
        now_s = time.monotonic()
        if self._behind or not self._followed or now_s - self._shown_s < _SHOW_S:
            return
        self._shown_s = now_s
        plan = self._plan
        self._metrics.held.set(self._days.held_keys)
        self._metrics.show(
            self._days.judged(),
            {"precision": plan.least_precision, "recall": plan.least_recall},
            plan.least_frauds,
        )
