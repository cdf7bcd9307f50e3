"""Keeps the partitions together in event time while a backlog or history is read.

A row's terminal features count what happened at its terminal, in any partition, until about
`label_delay` before it. They are the same on every run only if those transactions have been
processed by then. Rows are therefore held while they are too far ahead of the slowest partition
that is not finished, whoever reads it. In live traffic nothing is ever held: the partitions are
seconds apart.

Streamers that wait for each other cannot all wait: the partition that is furthest behind is never
held, and `group_progress` shows all of them where it is, by its next message.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flagger.state.records import DAY_MS, TERMINAL_BUCKET_MS
from streamer.segments import Segment, distinct

__all__ = ["MAX_SKEW_MS", "Aligner", "window_limit_ms"]

MAX_SKEW_MS = 2 * DAY_MS
"""How far a partition may run ahead. The terminal's ring holds 80 half days: a row looks back over
60, from 15 before its own (label delay and rounding); the newest may be 5 after it (this and
rounding): 59 + 15 + 5 < 80."""

_NEVER = -(2**62)


def window_limit_ms(complete_until_ms: int, label_delay_ms: int) -> int:
    """Return the first event time whose terminal windows need more than is complete.

    The windows of a row at t end with the half day before floor((t - label_delay) / half day).
    """
    bucket = complete_until_ms // TERMINAL_BUCKET_MS
    return (bucket + 1) * TERMINAL_BUCKET_MS + label_delay_ms


class Aligner:
    """Releases segments in order, each partition's messages in log order.

    Attributes:
        label_delay_ms: Of the live model's feature contract.

    Args:
        label_delay_ms: To begin with.
        unfinished: Returns the partitions that have unread messages, or had some a moment ago.
        others_slowest_ms: Returns the oldest event time that other streamers have not processed
            yet in their partitions; None: nothing is left.
    """

    def __init__(
        self,
        label_delay_ms: int,
        unfinished: Callable[[], set[int]],
        others_slowest_ms: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.label_delay_ms = label_delay_ms
        self._unfinished = unfinished
        self._others_slowest_ms = others_slowest_ms
        self._released_ms: dict[int, int] = {}
        self._limit_ms = _NEVER
        self._held: list[Segment] = []

    @property
    def held_messages(self) -> int:
        """Messages that wait for slower partitions."""
        return sum(len(segment.polled) for segment in self._held)

    @property
    def held_partitions(self) -> set[int]:
        """Partitions with messages that wait."""
        return {p for segment in self._held for p in distinct(segment.polled.partition)}

    @property
    def stream_clock_ms(self) -> int:
        """Newest event time released so far."""
        return max(self._released_ms.values(), default=_NEVER)

    def forget(self) -> None:
        """Drop everything held: the partitions were taken away."""
        self._held.clear()
        self._released_ms.clear()
        self._limit_ms = _NEVER

    def slowest_ms(self, ready: list[Segment]) -> int | None:
        """Return the event time before which everything is processed in all partitions.

        Those of other streamers count too.

        None where no partition has work left but what was processed already.

        Args:
            ready: Segments that were released and are not processed yet.
        """
        first: dict[int, int] = {}
        for segment in [*ready, *self._held]:
            times = segment.decoded.transactions.event_time_ms
            partitions = segment.positions.partition
            for p in distinct(partitions):
                first.setdefault(p, int(times[np.argmax(partitions == p)]))
        for p in self._unfinished() - first.keys():
            first[p] = self._released_ms.get(p, _NEVER)
        others_ms = self._others_slowest_ms()
        return min([*first.values(), *([] if others_ms is None else [others_ms])], default=None)

    def offer(self, segment: Segment | None) -> list[Segment]:
        """Take a new segment, if any, and return what may be processed now."""
        waiting = self._held if segment is None else [*self._held, segment]
        if not waiting:
            return []
        if not self._held and (len(waiting[0]) == 0 or waiting[0].last_ms < self._limit_ms):
            return [self._released(waiting[0])]
        self._held = []
        slowest = self.slowest_ms(waiting)
        if slowest is not None:
            self._limit_ms = min(
                slowest + MAX_SKEW_MS, window_limit_ms(slowest, self.label_delay_ms)
            )
        ready: list[Segment] = []
        blocked: set[int] = set()
        for part in waiting:
            free = self._free(part, blocked)
            if free.all():
                ready.append(self._released(part))
                continue
            if free.any():
                ready.append(self._released(part.select(free)))
                part = part.select(~free)
            self._held.append(part)
        return ready

    def _free(self, segment: Segment, blocked: set[int]) -> npt.NDArray[np.bool_]:
        """Mark the messages before the first one of their partition that must wait."""
        partition = segment.polled.partition
        late = np.zeros(len(partition), dtype=np.bool_)
        late[segment.decoded.source] = segment.decoded.transactions.event_time_ms >= self._limit_ms
        free = np.ones(len(partition), dtype=np.bool_)
        for p in distinct(partition):
            mine = np.flatnonzero(partition == p)
            if p in blocked:
                free[mine] = False
            elif late[mine].any():
                free[mine[np.argmax(late[mine]) :]] = False
                blocked.add(p)
        return free

    def _released(self, segment: Segment) -> Segment:
        times = segment.decoded.transactions.event_time_ms
        partitions = segment.positions.partition
        for p in distinct(partitions):
            newest = int(times[partitions == p].max())
            self._released_ms[p] = max(self._released_ms.get(p, _NEVER), newest)
        return segment
