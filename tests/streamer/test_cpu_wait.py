"""The streamer gathers more for a batch while it waits for a core, and only then."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from streamer.commits import Commits
from streamer.cpu_wait import CpuWait, read_schedstat

STEP_NS = 100_000_000


class Scheduler:
    """A thread's counters, as Linux has them, and the clock."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.ran_ns = 5 * STEP_NS
        self.waited_ns = 9 * STEP_NS
        self.asked = 0

    def read(self) -> tuple[int, int]:
        self.asked += 1
        return self.ran_ns, self.waited_ns

    def passes(self, wait: CpuWait, seconds: float, *, waited: float) -> float:
        """Ten times a second it runs 0.1 s and waits so many times as long; return the share."""
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            self.ran_ns += STEP_NS
            self.waited_ns += int(waited * STEP_NS)
            share = wait.share
        return share


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler()


@pytest.fixture
def cpu_wait(scheduler: Scheduler) -> CpuWait:
    return CpuWait(scheduler.read, lambda: scheduler.now_s)


def test_the_share_follows_within_seconds(scheduler: Scheduler, cpu_wait: CpuWait) -> None:
    assert cpu_wait.share == 0.0  # what was before it began says nothing
    assert scheduler.passes(cpu_wait, 5, waited=1.0) == pytest.approx(0.5, abs=0.01)
    assert scheduler.passes(cpu_wait, 0.3, waited=0.0) > 0.3  # a moment is no change
    assert scheduler.passes(cpu_wait, 5, waited=0.0) < 0.01
    assert scheduler.asked <= 36  # in 10.3 s; the loop asks for the share thousands of times


def test_a_thread_that_neither_ran_nor_waited(scheduler: Scheduler, cpu_wait: CpuWait) -> None:
    scheduler.passes(cpu_wait, 5, waited=1.0)
    for _ in range(2):
        scheduler.now_s += 1.0
        share = cpu_wait.share
    assert 0.0 < share < 0.4


def test_without_the_counters_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (None, "", "1 2", "a b c"):
        file = tmp_path / "schedstat"
        if content is not None:
            file.write_text(content)
        monkeypatch.setattr("streamer.cpu_wait._SCHEDSTAT", file)
        assert read_schedstat() == (0, 0)


def test_the_counters_of_this_thread_are_read() -> None:
    ran_ns, waited_ns = read_schedstat()
    until_s = time.thread_time() + 0.05
    while time.thread_time() < until_s:
        os.getpid()
    later_ns, later_waited_ns = read_schedstat()
    assert 40_000_000 < later_ns - ran_ns < 500_000_000
    assert later_waited_ns >= waited_ns


class Sink:
    """Commits at once, or never."""

    def __init__(self) -> None:
        self.committing = False
        self.has_output = False
        self.age_s = 0.0


@pytest.mark.parametrize(
    ("waited", "idle_s", "committing_s"),
    [
        (0.0, 0.0, 0.006),
        (0.3, 0.0, 0.006),  # 23 % of its time: what two busy cores bring along
        (0.6, 0.010, 0.010),
        (1.0, 0.020, 0.020),
        (5.0, 0.020, 0.020),  # and no more, however short cores are
    ],
)
def test_batches_are_gathered_while_cores_are_short(
    scheduler: Scheduler, cpu_wait: CpuWait, waited: float, idle_s: float, committing_s: float
) -> None:
    sink: Any = Sink()
    other: Any = None
    commits = Commits(sink, other, other, interval_ms=50, cpu_wait=cpu_wait)
    scheduler.passes(cpu_wait, 10, waited=waited)
    assert commits.linger_s == pytest.approx(idle_s, abs=1e-4)
    sink.committing = True
    assert commits.linger_s == pytest.approx(committing_s, abs=1e-4)
