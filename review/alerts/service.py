"""The alert service's loop: read alerts, match rules, hand messages to receivers, commit.

One thread reads and decides; each receiver has one that sends. Nothing is stored: the topic holds
what was not told yet, the committed offsets say how far each route has got (see `routes`).

What a receiver may get twice: the one message per rule that it took while this process died, lost
its partitions, or had not yet committed. What no restart can lose: any alert that is on the topic.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue

from confluent_kafka import Message

from flagger.alert import parse_alert
from flagger.errors import BadMessageError
from flagger.health import Health
from flagger.settings import Settings
from review.alerts.digest import Digest
from review.alerts.metrics import AlertMetrics
from review.alerts.receivers import Delivery, Receiver, Transport
from review.alerts.routes import Route, decode_progress, encode_progress
from review.alerts.rules import AlertRules
from review.alerts.segments import read_segments
from review.alerts.source import AlertSource
from review.alerts.texts import Text, of_digest
from review.alerts.watch import Watch

__all__ = ["MAX_NOTICES", "AlertService"]

MAX_NOTICES = 10
"""Most messages about the service itself that wait for a receiver; the oldest gives way."""
LEAVE_S = 5.0
"""How long messages under way may take when partitions go away or the service ends."""
CATCH_UP_S = 30.0
"""After a start nobody is told until the backlog is read, so that it is one message; at most so
long."""
_IDLE_WAIT_S = 0.02
_BUSY_WAIT_S = 0.002
"""While a message is under way its end is to be seen soon: more may wait for the receiver."""
_COMMIT_EVERY_S = 1.0
_FRESH_S = 30.0
"""A loop that came round within so long is well."""
_log = logging.getLogger(__name__)


class AlertService:
    """Tells receivers of alerts until it is told to stop.

    Args:
        settings: With Kafka's address.
        rules: Receivers and rules.
        transports: Receiver -> what sends its messages.
        metrics: Where to count.
        keep_going: Asked in every round; False ends `run`.
        health: Told what keeps the service from its work.
        clock_s: Returns monotonic time, seconds.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        rules: AlertRules,
        transports: Mapping[str, Transport],
        metrics: AlertMetrics,
        *,
        keep_going: Callable[[], bool],
        health: Health | None = None,
        clock_s: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._rules = rules
        self._segments = read_segments(rules)
        self._metrics = metrics
        self._keep_going = keep_going
        self._health = health or Health({"partitions": "Kafka has assigned no partition yet."})
        self._clock_s = clock_s
        self._clock_ms = clock_ms
        self._outcomes: SimpleQueue[Delivery] = SimpleQueue()
        self._receivers = {
            name: Receiver(name, send, self._outcomes, clock_s=clock_s, clock_ms=clock_ms)
            for name, send in transports.items()
        }
        self._routes = {
            name: [Route(rule, name, clock_s) for rule in rules.rules_of(name)]
            for name in transports
        }
        self._all_routes = [route for routes in self._routes.values() for route in routes]
        self._notices: dict[str, deque[Text]] = {n: deque(maxlen=MAX_NOTICES) for n in transports}
        self._positions: dict[int, int] = {}
        self._committed: dict[int, tuple[int, str]] = {}
        self._commit_s = self._round_s = self._catch_up_until_s = clock_s()
        self._source = AlertSource(
            settings, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._forget
        )
        self._watch = Watch(settings, rules, self._health, metrics, self._is_well, self._tell)

    def run(self) -> None:
        """Tell until `keep_going` says no; what is under way is then finished and committed."""
        try:
            while self._keep_going():
                self._round()
        finally:
            self._watch.close()
            self._source.close()  # calls _revoked, which waits and commits
            for receiver in self._receivers.values():
                receiver.close(LEAVE_S)

    def _round(self) -> None:
        self._round_s = self._clock_s()
        self._health.came_round()
        busy = any(receiver.busy for receiver in self._receivers.values())
        for message in self._source.poll(_BUSY_WAIT_S if busy else _IDLE_WAIT_S):
            self._take(message)
        if self._settle(0.0) or self._clock_s() - self._commit_s >= _COMMIT_EVERY_S:
            self._commit()
            self._report()
        if not self._source.catching_up or self._clock_s() >= self._catch_up_until_s:
            self._dispatch()

    def _take(self, message: Message) -> None:
        """Match one alert and let it wait for its messages."""
        partition, offset = message.partition(), message.offset()
        self._positions[partition] = offset + 1
        self._metrics.consumed.inc()
        try:
            alert = parse_alert(message.value() or b"")
        except BadMessageError as error:
            self._metrics.unreadable.inc()
            _log.warning("Partition %d, offset %d is no alert: %s", partition, offset, error)
            return
        severity = self._rules.severity_of(alert)
        matched = False
        for routes in self._routes.values():
            for route in routes:
                if route.rule.matches(alert, severity, self._segments):
                    route.add(partition, offset, alert, severity, message.timestamp()[1])
                    matched = True
                    break
        if not matched:
            self._metrics.unmatched.inc()

    def _dispatch(self) -> None:
        """Give each receiver that is free its next message: the one that waits longest."""
        for name, receiver in self._receivers.items():
            if not receiver.free:
                continue
            if self._notices[name]:
                text = self._notices[name][0]
                receiver.send(text, text)
                continue
            due = [route for route in self._routes[name] if route.due]
            if due:
                route = min(due, key=lambda r: r.oldest_ms or 0)
                digest = route.take()
                text = of_digest(digest, route.rule.name, self._rules.desk_url)
                receiver.send(text, (route, digest))

    def _settle(self, wait_s: float) -> bool:
        """Take note of how messages ended; return True if any was taken."""
        taken = False
        while True:
            try:
                delivery = (
                    self._outcomes.get(timeout=wait_s) if wait_s else self._outcomes.get(False)
                )
            except Empty:
                return taken
            wait_s = 0.0
            name, receiver = delivery.receiver, self._receivers[delivery.receiver]
            receiver.settle(delivery)
            if delivery.why_not:
                self._metrics.failures.labels(name).inc()
                self._health.waits(f"receiver {name}", delivery.why_not)
            else:
                self._metrics.messages.labels(name).inc()
                self._health.goes_on(f"receiver {name}")
                taken = True
            self._close(delivery)

    def _close(self, delivery: Delivery) -> None:
        """Move the route on, or let its alerts wait again."""
        if isinstance(delivery.item, Text):
            notices = self._notices[delivery.receiver]
            if not delivery.why_not and notices and notices[0] is delivery.item:
                notices.popleft()
            return
        route, digest = delivery.item
        if delivery.why_not:
            route.failed()
            return
        route.delivered()
        self._count_delivered(delivery, digest)

    def _count_delivered(self, delivery: Delivery, digest: Digest) -> None:
        self._metrics.delivered.labels(delivery.receiver).inc(digest.count)
        delivery_s = self._metrics.delivery_s.labels(delivery.receiver)
        for stamp_ms in digest.stamps_ms:
            delivery_s.observe(max(delivery.at_ms - stamp_ms, 0) / 1000)

    def _commit(self) -> None:
        """Commit how far everything has got, where that has changed."""
        self._commit_s = self._clock_s()
        offsets = {
            p: encode_progress(self._all_routes, p, position)
            for p, position in self._positions.items()
        }
        changed = {p: where for p, where in offsets.items() if self._committed.get(p) != where}
        if not changed:
            return
        why_not = self._source.commit(changed)
        if why_not:
            self._metrics.commit_failures.inc()
            _log.warning("Kafka did not take the offsets, the next attempt follows: %s", why_not)
        else:
            self._committed |= changed

    def _report(self) -> None:
        now_ms = self._clock_ms()
        for name, routes in self._routes.items():
            stamps = [route.oldest_ms for route in routes if route.oldest_ms is not None]
            self._metrics.waiting.labels(name).set(sum(route.waiting for route in routes))
            oldest_s = max(now_ms - min(stamps), 0) / 1000 if stamps else 0
            self._metrics.oldest_s.labels(name).set(oldest_s)
            self._metrics.failing.labels(name).set(bool(self._receivers[name].failing))

    def _is_well(self) -> bool:
        return not self._health.reasons and self._clock_s() - self._round_s < _FRESH_S

    def _tell(self, text: Text) -> None:
        """Let a message about the service itself wait; called from the watch's thread."""
        for name in self._rules.silence.receivers if self._rules.silence else ():
            if len(self._notices[name]) == MAX_NOTICES:
                self._metrics.dropped_notices.inc()
            self._notices[name].append(text)

    def _assigned(self, committed: dict[int, tuple[int, str | None]]) -> None:
        for partition, (offset, metadata) in committed.items():
            self._positions[partition] = max(offset, 0)
            for route in self._all_routes:
                route.assign(partition, decode_progress(offset, metadata, route.id))
        self._catch_up_until_s = self._clock_s() + CATCH_UP_S
        if committed:
            self._health.goes_on("partitions")

    def _revoked(self) -> None:
        end_s = self._clock_s() + LEAVE_S
        while any(r.under_way for r in self._all_routes) and self._clock_s() < end_s:
            self._settle(0.05)
        self._commit()
        self._forget()

    def _forget(self) -> None:
        for route in self._all_routes:
            for partition in self._positions:
                route.forget(partition)
        self._positions, self._committed = {}, {}
        for name, receiver in self._receivers.items():  # nothing of ours waits for it any more
            receiver.failing = ""
            self._health.goes_on(f"receiver {name}")
        self._health.waits("partitions", "Kafka has given this process no partition.")
