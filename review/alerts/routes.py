"""One rule's way to one receiver: what waits, what is under way, how far it has got.

The alerts topic itself is the memory: an offset is committed only when every message about what
lies before it has been taken by its receiver. What waits for a digest is therefore read again
after a crash. So that a receiver that is up is not told again what another has missed, each
route's own offset travels in the committed offset's metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable

from flagger.alert import Alert
from review.alerts.digest import Digest
from review.alerts.rules import AlertRule, Severity

__all__ = ["Route", "decode_progress", "encode_progress", "route_id"]


def route_id(rule: str, receiver: str) -> str:
    """Return the short name under which a pair's progress is kept, 8 hex digits."""
    return hashlib.sha256(f"{rule}\0{receiver}".encode()).hexdigest()[:8]


class Route:
    """A pair of rule and receiver.

    Messages are limited by a token bucket: `burst` at once, then one in `digest_every_s`. Each
    takes along everything that waits. Offsets are those of the next alert to deal with.

    Args:
        rule: The rule.
        receiver: Name of the receiver.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(self, rule: AlertRule, receiver: str, clock_s: Callable[[], float]) -> None:
        self.rule = rule
        self.receiver = receiver
        self.id = route_id(rule.name, receiver)
        self._clock_s = clock_s
        self._tokens = float(rule.burst)
        self._filled_s = clock_s()
        self._waiting: dict[int, Digest] = {}
        self._ends: dict[int, int] = {}
        self._delivered: dict[int, int] = {}
        self._under_way: tuple[dict[int, Digest], dict[int, int]] | None = None

    def assign(self, partition: int, offset: int) -> None:
        """Begin a partition: everything before `offset` was delivered."""
        self.forget(partition)
        self._delivered[partition] = offset

    def forget(self, partition: int) -> None:
        """Drop a partition that somebody else has now; a message under way stays under way."""
        self._waiting.pop(partition, None)
        self._ends.pop(partition, None)
        self._delivered.pop(partition, None)
        if self._under_way is not None:
            for part in self._under_way:
                part.pop(partition, None)

    def add(
        self, partition: int, offset: int, alert: Alert, severity: Severity, stamp_ms: int
    ) -> bool:
        """Let an alert wait for the next message; False: it was delivered before a restart."""
        if offset < self._delivered.get(partition, 0):
            return False
        digest = self._waiting.setdefault(partition, Digest(self.rule.named))
        digest.add(alert, severity, stamp_ms)
        self._ends[partition] = offset + 1
        return True

    @property
    def waiting(self) -> int:
        """Alerts that no receiver has taken yet, those under way included."""
        under_way = self._under_way[0].values() if self._under_way else ()
        return sum(d.count for d in (*self._waiting.values(), *under_way))

    @property
    def under_way(self) -> bool:
        """True while a receiver has a message that it has not answered."""
        return self._under_way is not None

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest waiting alert's transaction was written; None: nothing waits."""
        return min((d.stamps_ms[0] for d in self._waiting.values()), default=None)

    @property
    def due(self) -> bool:
        """True if something waits, nothing is under way and a message may be sent."""
        self._fill()
        return bool(self._waiting) and self._under_way is None and self._tokens >= 1

    def take(self) -> Digest:
        """Return everything that waits as one digest, now under way."""
        self._tokens -= 1
        self._under_way = self._waiting, self._ends
        self._waiting, self._ends = {}, {}
        whole = Digest(self.rule.named)
        for part in self._under_way[0].values():
            whole.merge(part)
        return whole

    def delivered(self) -> None:
        """Take note that the receiver has what was under way."""
        if self._under_way is not None:
            self._delivered |= self._under_way[1]
        self._under_way = None

    def failed(self) -> None:
        """Let what was under way wait again, before what has come since; the token is back too."""
        if self._under_way is None:
            return
        parts, ends = self._under_way
        self._under_way = None
        self._tokens = min(self._tokens + 1, float(self.rule.burst))
        for partition, part in parts.items():
            later = self._waiting.get(partition)
            if later is not None:
                part.merge(later)
            self._waiting[partition] = part
        self._ends = ends | self._ends

    def done(self, partition: int, position: int) -> int:
        """Return the offset before which nothing waits or is under way.

        Args:
            partition: Which.
            position: The consumer's: everything before it has been read.
        """
        under_way = self._under_way[0] if self._under_way else {}
        if partition in self._waiting or partition in under_way:
            return self._delivered.get(partition, 0)
        return position

    def _fill(self) -> None:
        now_s = self._clock_s()
        gained = (now_s - self._filled_s) / self.rule.digest_every_s
        self._tokens = min(self._tokens + gained, float(self.rule.burst))
        self._filled_s = now_s


def encode_progress(routes: Iterable[Route], partition: int, position: int) -> tuple[int, str]:
    """Return the offset to commit and its metadata: routes that are further, and how far.

    >>> from review.alerts.rules import AlertRule
    >>> route = Route(AlertRule("all", ["ops"]), "ops", lambda: 0.0)
    >>> route.assign(0, 5)
    >>> encode_progress([route], 0, 9)
    (9, '')
    """
    done = {route.id: route.done(partition, position) for route in routes}
    least = min(done.values(), default=position)
    further = {name: offset - least for name, offset in done.items() if offset > least}
    return least, json.dumps(further, separators=(",", ":")) if further else ""


def decode_progress(offset: int, metadata: str | None, name: str) -> int:
    """Return how far a route has got, given a committed offset (below 0: none) and metadata.

    Metadata that is not ours counts as none: what others wrote must not stop the alerts.
    """
    start = max(offset, 0)
    try:
        further = json.loads(metadata or "{}").get(name, 0)
    except (ValueError, AttributeError):
        return start
    usable = isinstance(further, int) and math.isfinite(further) and further > 0
    return start + (further if usable else 0)
