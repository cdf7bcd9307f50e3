"""Metrics of `flagger drift watch`: every name, unit and meaning in one place."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry

from flagger.health import Health
from flagger.instruments import Instruments, show_waiting
from flagger.state.records import DAY_MS
from train.maturing import Judged

__all__ = ["PARTS", "LabelsMetrics"]

PARTS = ("topics", "reading")
"""What the watch may wait for: topics that are not there, the end of what they hold already."""
_NONE = float("nan")


class LabelsMetrics:
    """Counters and gauges of one watch."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        made = Instruments("flagger_labels", registry)
        gauge = made.gauge
        self.registry = made.registry
        self.messages = made.counter("messages", "Decisions and labels that were read", "topic")
        self.refused = made.counter("refused", "Messages that are no decision or label", "topic")
        self.forgotten_days = made.counter(
            "forgotten_days", "Days given up since too many flagged transactions are remembered"
        )
        self.held = gauge("held", "Flagged and labelled transactions that are remembered")
        self.precision = gauge(
            "precision", "Share of frauds among the flagged, on days with mature labels"
        )
        self.recall = gauge(
            "recall", "Share of the frauds that were flagged, on days with mature labels"
        )
        self.decisions = gauge("decisions", "Decisions of the judged days")
        self.flagged = gauge("flagged", "Reviews and declines of the judged days")
        self.frauds = gauge("frauds", "Frauds of the judged days, by label")
        self.caught = gauge("caught", "Those that were flagged")
        self.judged_days = gauge("judged_days", "Days that are judged")
        self.unlabelled_days = gauge(
            "unlabelled_days", "Days old enough to be judged that no label has reached"
        )
        self.newest_day_s = gauge(
            "newest_judged_day_timestamp_seconds", "When the newest judged day began, UTC"
        )
        self.alarm = gauge(
            "alarm", "1 while precision or recall is below its limit, with enough frauds", "measure"
        )
        self.waiting = gauge("waiting", "1 while the watch waits for a part", "part")
        for value in (self.precision, self.recall, self.newest_day_s):
            value.set(_NONE)
        for measure in ("precision", "recall"):
            self.alarm.labels(measure).set(0)

    def show_waiting(self, health: Health) -> None:
        """Have the gauge say what the watch waits for at the moment when it is asked."""
        show_waiting(self.waiting, health, PARTS)

    def show(self, judged: Judged, least: dict[str, float], least_frauds: int) -> None:
        """Show what the mature days say.

        Args:
            judged: The days.
            least: `precision` and `recall` below which there is an alarm.
            least_frauds: Fewer frauds raise none.
        """
        totals = judged.totals
        for name in ("precision", "recall"):
            value = getattr(totals, name)
            getattr(self, name).set(value)
            low = totals.frauds >= least_frauds and not math.isnan(value) and value < least[name]
            self.alarm.labels(name).set(low)
        for name in ("decisions", "flagged", "frauds", "caught"):
            getattr(self, name).set(getattr(totals, name))
        self.judged_days.set(judged.days)
        self.unlabelled_days.set(judged.unlabelled_days)
        newest = judged.newest_day
        self.newest_day_s.set(_NONE if newest is None else newest * DAY_MS / 1000)
