"""Who tells that nothing is told: the heartbeat, and the watch for decisions that stay away.

A thread of its own asks Kafka for the ends of two topics every few seconds. That shows whether
Kafka answers at all, and whether decisions are still made.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import httpx
from confluent_kafka import Consumer, KafkaException, TopicPartition

from flagger.health import Health
from flagger.kafka import client_config
from flagger.settings import Settings
from review.alerts.metrics import AlertMetrics
from review.alerts.rules import AlertRules
from review.alerts.texts import Text, notice

__all__ = ["Heart", "LogEnd", "SilenceWatch", "Watch"]

PROBE_EVERY_S = 5.0
"""How often Kafka is asked; shorter intervals of the file shorten it."""
_ANSWER_S = 5.0
_HEARTBEAT_TIMEOUT_S = 10.0
_log = logging.getLogger(__name__)


class LogEnd:
    """How many messages a topic has had."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._consumer = Consumer(
            client_config(settings) | {"group.id": "flagger-ends", "enable.auto.commit": False}
        )

    def read(self) -> int:
        """Return the sum of the partitions' end offsets; raises KafkaException."""
        found = self._consumer.list_topics(self._topic, timeout=_ANSWER_S).topics[self._topic]
        if found.error is not None:
            raise KafkaException(found.error)
        total = 0
        for partition in found.partitions:
            place = TopicPartition(self._topic, partition)
            total += self._consumer.get_watermark_offsets(place, timeout=_ANSWER_S)[1]
        return total

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()


class SilenceWatch:
    """Says when no decision has been made for too long, and when there are some again.

    Args:
        after_s: How long is too long.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(self, after_s: float, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._after_s = after_s
        self._clock_s = clock_s
        self._decisions = -1
        self._transactions = 0
        self._since_s = clock_s()
        self.silent = False

    def look(self, transactions: int, decisions: int) -> Text | None:
        """Return what to tell, given how many messages both topics have had."""
        now_s = self._clock_s()
        if decisions != self._decisions:
            was_silent, lasted_s = self.silent, now_s - self._since_s
            self._decisions, self._transactions = decisions, transactions
            self._since_s, self.silent = now_s, False
            if not was_silent:
                return None
            body = f"The first decision after {lasted_s:,.0f} s. Late ones follow."
            return notice("Fraud Flagger decides again", body, "info")
        if self.silent or now_s - self._since_s < self._after_s:
            return None
        self.silent = True
        arrived = transactions - self._transactions
        what = (
            f"{arrived:,} messages wait: look at the streamer's /readyz and log."
            if arrived > 0
            else "No transaction arrived either: look at the producers."
        )
        title = f"No decision for {now_s - self._since_s:,.0f} s"
        return notice(title, what, "critical")


class Heart:
    """Asks a URL now and then, as long as all is well.

    Args:
        url: The URL; secret.
        every_s: How often.
        is_well: Asked before each beat.
        on_failure: Called when a beat was not answered with success.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        url: str,
        every_s: float,
        is_well: Callable[[], bool],
        on_failure: Callable[[], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each URL
        self._client = httpx.Client(timeout=_HEARTBEAT_TIMEOUT_S)
        self._url = url
        self._every_s = every_s
        self._is_well = is_well
        self._on_failure = on_failure
        self._clock_s = clock_s
        self._next_s = clock_s()

    def beat_if_due(self) -> None:
        """Beat if it is time and all is well."""
        if self._clock_s() < self._next_s or not self._is_well():
            return
        self._next_s = self._clock_s() + self._every_s
        try:
            status = self._client.get(self._url).status_code
            why_not = "" if status < httpx.codes.BAD_REQUEST else f"status {status}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # its text may hold the URL
            why_not = type(error).__name__
        if why_not:
            self._on_failure()
            _log.warning("The heartbeat was not answered: %s.", why_not)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class Watch:
    """The thread that looks; `tell` gets what people must hear.

    Args:
        settings: Where Kafka is.
        rules: Heartbeat and silence.
        health: Told whether Kafka answers.
        metrics: Where to count.
        is_well: True while the service does its work.
        tell: Called from the thread.
    """

    def __init__(
        self,
        settings: Settings,
        rules: AlertRules,
        health: Health,
        metrics: AlertMetrics,
        is_well: Callable[[], bool],
        tell: Callable[[Text], None],
    ) -> None:
        self._ends = [
            LogEnd(settings, topic)
            for topic in (settings.transactions_topic, settings.decisions_topic)
        ]
        self._health = health
        self._metrics = metrics
        self._tell = tell
        self._silence = SilenceWatch(rules.silence.after_s) if rules.silence else None
        self._heart = None
        intervals = [PROBE_EVERY_S]
        if rules.heartbeat is not None:
            url = rules.heartbeat.read("heartbeat")
            self._heart = Heart(
                url, rules.heartbeat.every_s, is_well, metrics.heartbeat_failures.inc
            )
            intervals.append(rules.heartbeat.every_s / 2)
        if rules.silence is not None:
            intervals.append(rules.silence.after_s / 2)
        self._every_s = min(intervals)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()
        for part in (*self._ends, *([self._heart] if self._heart else ())):
            part.close()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                transactions, decisions = (end.read() for end in self._ends)
            except KafkaException as error:
                self._health.waits("kafka", f"Kafka does not answer: {error}.")
                continue
            self._health.goes_on("kafka")
            if self._silence is not None:
                told = self._silence.look(transactions, decisions)
                self._metrics.silent.set(self._silence.silent)
                if told is not None:
                    self._tell(told)
            if self._heart is not None:
                self._heart.beat_if_due()
