"""Random kills while transactions flow, and the proof afterwards that nothing was lost or doubled.

The seed decides what is killed, where and after how long. The machine decides how far everything
had come by then, so the same seed gives the same plan, not the same run.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa

from loadtest.crash_check import CrashVerdict
from loadtest.crash_points import POINTS, CrashingStreamer
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld
from train.simulate import SimulationConfig, simulate

__all__ = ["ChaosPlan", "ChaosResult", "run_chaos"]

KINDS = {
    "streamer at a point": 48,
    "streamer at any time": 33,
    "second streamer": 7,
    "triton": 4,
    "valkey": 4,
    "kafka": 4,
}
"""What is killed, and how often in a hundred."""
_FEED_ROWS = 100
_POINT_S = 8.0
"""A streamer that has not come to its point by then is killed where it is."""
_DRAIN_S = 180.0


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What to do.

    Attributes:
        seed: Of the plan and of the simulated transactions.
        kills: Number of processes to kill.
        rate_per_s: Transactions per second meanwhile. Event time passes half a day in some
            seconds: labels and the terminals' windows matter, and streamers that wait for each
            other's sessions are still less than the label delay apart.
        simulation: What flows.
    """

    seed: int
    kills: int = 100
    rate_per_s: float = 400.0

    @property
    def simulation(self) -> SimulationConfig:
        """Return what flows, in the order of its event time."""
        return SimulationConfig(customers=2_000, terminals=800, days=60, seed=self.seed)


@dataclass(slots=True)
class ChaosResult:
    """What happened.

    Attributes:
        kills: Number of kills by kind.
        restarts: Streamers that ended by themselves, as they should when a server is away, and
            were started again.
        verdict: What came out of it.
    """

    kills: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    verdict: CrashVerdict | None = None


class _Run:
    """The state of a run: the streamer that works now, and what has been done."""

    def __init__(self, plan: ChaosPlan, world: CrashWorld, services: Services) -> None:
        self.random = random.Random(plan.seed)  # noqa: S311 - reproducible on purpose
        self.world = world
        self.services = services
        self.streamer: CrashingStreamer | None = None

    def work(self, seconds: float) -> CrashingStreamer:
        """Let a streamer work for a while; one that ends by itself is started again."""
        streamer = self.streamer or self.world.start()
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            streamer = self.world.supervise(streamer)
            time.sleep(0.02)
        self.streamer = streamer
        return streamer

    def kill_at_point(self) -> None:
        """Kill a streamer at an exact point, the first few times that it comes there."""
        if self.streamer is not None:
            self.streamer.kill()
        point, nth = self.random.choice(POINTS), self.random.randint(1, 3)
        doomed = self.world.start(point=point, nth=nth)
        if doomed.wait(_POINT_S) is None:
            doomed.kill()
        self.world.restarts += doomed.status != -signal.SIGKILL
        self.streamer = None

    def kill_at_any_time(self) -> None:
        """Kill a streamer a moment after its start, in its recovery or in full work."""
        self.work(self.random.uniform(0.1, 2.5)).kill()
        self.streamer = None

    def kill_second(self) -> None:
        """Have a second streamer join, kill it, start it again, and let it go in peace."""
        self.work(0.5)
        second = self.world.start("second")
        self.work(self.random.uniform(0.2, 3.0))
        second.kill()
        second = self.world.start("second")
        self.work(self.random.uniform(0.5, 3.0))
        while second.running:
            second.send(signal.SIGTERM)
            self.work(0.2)
        self.world.restarts += second.status != 0

    def kill_server(self, name: str) -> None:
        """Kill a server under a working streamer, and start it again."""
        self.work(self.random.uniform(0.2, 1.0))
        self.services.restart(name, away_s=self.random.uniform(0, 2))
        self.work(self.random.uniform(0.2, 2.0))

    def kill(self, kind: str) -> None:
        """Do one kill of this kind."""
        if kind == "streamer at a point":
            self.kill_at_point()
        elif kind == "streamer at any time":
            self.kill_at_any_time()
        elif kind == "second streamer":
            self.kill_second()
        else:
            self.kill_server(kind)


def _pieces(plan: ChaosPlan, enough: threading.Event) -> Iterator[pa.RecordBatch]:
    for day in simulate(plan.simulation):
        for start in range(0, len(day), _FEED_ROWS):
            if enough.is_set():
                return
            yield day.slice(start, _FEED_ROWS)


def run_chaos(
    plan: ChaosPlan,
    world: CrashWorld,
    services: Services,
    on_kill: Callable[[str], None] = lambda _: None,
) -> ChaosResult:
    """Kill, start again, and check in the end.

    Args:
        plan: What to do.
        world: A new one; its streamers score what flows.
        services: The servers that it uses.
        on_kill: Told after each kill what was killed.

    Raises:
        FlaggerError: Something did not come back, or not everything was decided in the end.
    """
    result = ChaosResult()
    run = _Run(plan, world, services)
    enough = threading.Event()
    world.start_feeding(_pieces(plan, enough), plan.rate_per_s)
    try:
        for _ in range(plan.kills):
            (kind,) = run.random.choices(list(KINDS), list(KINDS.values()))
            run.kill(kind)
            result.kills[kind] += 1
            on_kill(kind)
    finally:
        enough.set()
    last = run.work(0)
    world.finish_feeding()
    world.drain(last, timeout_s=_DRAIN_S).stop()
    result.restarts = world.restarts
    result.verdict = world.check()
    return result
