"""When to commit, and how far: offsets from processed to written to committed."""

from __future__ import annotations

import time

from streamer.cpu_wait import CpuWait
from streamer.metrics import StreamerMetrics
from streamer.sink import DecisionSink
from streamer.source import Assignment, TransactionSource

__all__ = ["Commits"]

_LINGER_S = 0.006
"""While a commit is under way no decision can go out: a few larger batches do as well as many."""
_GATHER_S = 0.02
"""The same while all that is written was answered by the gateway, and while cores are short."""
_SHORT_SHARE, _SHORTEST_SHARE = 0.25, 0.5
"""Shares of its time that the streamer waits for a core, from where on it gathers a little, and all
of `_GATHER_S`. Fewer batches cost everybody on the machine less: Kafka, Triton, the gateway."""


class Commits:
    """Drives the sink's transactions.

    With a backlog a transaction stays open for the commit interval, which spreads its cost over
    many decisions. Without one it is committed as soon as the last commit is through, so that
    readers see decisions at once. Where all were answered before (the gateway's), nobody waits for
    them: they are gathered for the interval too, which leaves the cores to the gateway.

    Attributes:
        committed: Partition -> offset up to which everything is committed.
    """

    def __init__(
        self,
        sink: DecisionSink,
        source: TransactionSource,
        metrics: StreamerMetrics,
        *,
        interval_ms: float,
        cpu_wait: CpuWait | None = None,
    ) -> None:
        self._sink = sink
        self._source = source
        self._metrics = metrics
        self._interval_s = interval_ms / 1000
        self._cpu_wait = cpu_wait or CpuWait()
        self._written: dict[int, int] = {}
        self._under_way: dict[int, int] | None = None
        self._started_s = self._first_s = 0.0
        self._awaited = False
        self.committed: dict[int, int] = {}

    def restart(self, plan: dict[int, Assignment]) -> None:
        """Begin with new partitions."""
        self.committed = {p: a.committed for p, a in plan.items()}
        self._written = {p: max(a.start, a.committed) for p, a in plan.items()}
        self._under_way = None
        self._awaited = False

    @property
    def cpu_wait_share(self) -> float:
        """Share of its time that the caller's thread waits for a core (`CpuWait`)."""
        return self._cpu_wait.share

    @property
    def linger_s(self) -> float:
        """How long to wait for more messages once there is one, seconds."""
        if self._sink.committing:
            linger_s = _LINGER_S
        else:
            linger_s = _GATHER_S if self._waits and not self._awaited else 0.0
        short = (self.cpu_wait_share - _SHORT_SHARE) / (_SHORTEST_SHARE - _SHORT_SHARE)
        return max(linger_s, _GATHER_S * min(short, 1.0))

    @property
    def _waits(self) -> bool:
        return self._sink.has_output or self._written != (self._under_way or self.committed)

    @property
    def _age_s(self) -> float:
        return self._sink.age_s if self._sink.has_output else time.monotonic() - self._first_s

    def note_written(self, end_offsets: dict[int, int], *, awaited: bool = True) -> None:
        """Take note that the outputs of all messages before these offsets are in a transaction.

        Args:
            end_offsets: Partition -> offset.
            awaited: False: somebody has answered all of them already.
        """
        if not self._waits:
            self._first_s = time.monotonic()
        self._awaited |= awaited
        for p, offset in end_offsets.items():
            self._written[p] = max(self._written[p], offset)

    def advance(self, *, caught_up: bool) -> None:
        """Finish the commit under way if it is through, and start the next one if it is due."""
        if self._sink.committing:
            return
        self.settle()
        if self._waits and ((caught_up and self._awaited) or self._age_s >= self._interval_s):
            self._start()

    def settle(self) -> None:
        """Wait for the commit under way, if any."""
        if self._under_way is not None:
            self._sink.settle()
            self._metrics.commit_s.observe(time.monotonic() - self._started_s)
            self.committed, self._under_way = self._under_way, None

    def commit_all(self) -> None:
        """Commit everything that is written, now."""
        self.settle()
        if self._waits:
            self._start()
            self.settle()

    def _start(self) -> None:
        self._started_s = time.monotonic()
        self._under_way = dict(self._written)
        self._awaited = False
        offsets = self._source.offsets(self._written)
        self._sink.commit(offsets, self._source.group_metadata())
