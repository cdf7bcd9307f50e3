"""What one load run left: every request's times, and how busy the generator was."""

from __future__ import annotations

import math

import msgspec

from loadtest.payments import Checked

__all__ = ["OUTSIDE", "Recording", "quantile"]

OUTSIDE = "outside"
"""The part of a latency that no stage of the gateway explains: HTTP, network, waiting for the
gateway's event loop, and the generator itself."""


class Recording(msgspec.Struct, kw_only=True):
    """The measured part of one run: the requests that were due after the warm-up.

    Times are `time.perf_counter` seconds. A list holds one value per answered request.

    Attributes:
        rate_per_s: Requests per second that were to be sent, on average.
        start_s: When the measured part began.
        duration_s: How long it was to last.
        due_s: When the request was to be sent.
        sent_s: When it was sent.
        done_s: When its answer was there.
        late_s: How much later than it could the generator sent it: from when it was due and its
            connection was free.
        stages_ms: The gateway's own times by stage; a stage that a request skipped is left out.
        kinds: What the model decided, see `loadtest.payments.Checked`.
        versions: The model version that decided, likewise.
        failed: True if the request failed.
        inside_ms: The time of all the gateway's stages together; 0 if it told none.
        sources: Answers by decision source.
        failures: Failed requests by reason.
        repeats: Requests with an earlier transaction id.
        cpu_shares: The generator's CPU time, as a share of one core, second by second.
    """

    rate_per_s: float
    start_s: float
    duration_s: float
    due_s: list[float] = []
    sent_s: list[float] = []
    done_s: list[float] = []
    late_s: list[float] = []
    stages_ms: dict[str, list[float]] = {}
    kinds: list[str] = []
    versions: list[str] = []
    failed: list[bool] = []
    inside_ms: list[float] = []
    sources: dict[str, int] = {}
    failures: dict[str, int] = {}
    repeats: int = 0
    cpu_shares: list[float] = []

    def measures(self, due_s: float) -> bool:
        """Return True if a request that is due then belongs to the measured part."""
        return self.start_s <= due_s < self.start_s + self.duration_s

    def add(
        self,
        *,
        due_s: float,
        sent_s: float,
        done_s: float,
        late_s: float,
        is_repeat: bool,
        checked: Checked,
        stages: dict[str, float],
    ) -> None:
        """Add one request."""
        self.due_s.append(due_s)
        self.sent_s.append(sent_s)
        self.done_s.append(done_s)
        self.late_s.append(late_s)
        self.repeats += is_repeat
        self.kinds.append(checked.kind)
        self.versions.append(checked.version)
        self.failed.append(bool(checked.fault))
        self.inside_ms.append(sum(stages.values()))
        if source := checked.source:
            self.sources[source] = self.sources.get(source, 0) + 1
        if fault := checked.fault:
            self.failures[fault] = self.failures.get(fault, 0) + 1
        if stages:
            for name, duration_ms in stages.items():
                self.stages_ms.setdefault(name, []).append(duration_ms)
            outside_ms = (done_s - due_s) * 1000 - sum(stages.values())
            self.stages_ms.setdefault(OUTSIDE, []).append(outside_ms)

    @property
    def latencies_ms(self) -> list[float]:
        """From when each request was due to its answer."""
        return [(done - due) * 1000 for due, done in zip(self.due_s, self.done_s, strict=True)]

    def by_second_ms(self) -> list[list[float]]:
        """Return the latencies of the requests that were due in each second."""
        seconds: list[list[float]] = [[] for _ in range(math.ceil(self.duration_s))]
        for due_s, latency_ms in zip(self.due_s, self.latencies_ms, strict=True):
            seconds[min(int(due_s - self.start_s), len(seconds) - 1)].append(latency_ms)
        return seconds

    def worst_second_ms(self) -> float:
        """Return the highest p99 of one second; NaN if nothing was answered."""
        found = [quantile(values, 0.99) for values in self.by_second_ms() if values]
        return max(found, default=math.nan)

    def of_kind(self, kind: str, values: list[float]) -> list[float]:
        """Return the values, one per answered request, of the decisions of one kind."""
        return [value for value, told in zip(values, self.kinds, strict=True) if told == kind]

    @property
    def achieved_per_s(self) -> float:
        """Requests per second that were sent while they should have been."""
        return sum(map(self.measures, self.sent_s)) / self.duration_s


def quantile(values: list[float], share: float) -> float:
    """Return the least value that at least `share` of the values do not exceed; NaN if none.

    >>> quantile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    """
    if not values:
        return math.nan
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]
