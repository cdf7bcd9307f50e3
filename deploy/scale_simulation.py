"""A simulation of streamers: queues, batches, overlapping commits, and one streamer lost.

Not a measurement. Costs of a row are those of `figures.json`; the fixed times come from results of
lone messages (`Costs.load`), the recovery from `recovery-1m`; how much longer they take where
others use the cores is queueing theory (`stretch_of`). Nothing is fitted to the results that the
simulation is compared with. `docs/scaling.md` says how far off it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from deploy.scaling import Demand, Figures, plan_for
from flagger.bench_results import StoredResult

__all__ = [
    "Costs",
    "Outage",
    "Served",
    "arrivals_s",
    "compare",
    "serve",
    "shares",
    "simulate",
    "stretch_of",
]

_RESULTS = Path(__file__).parents[1] / "loadtest" / "results"
_COMPARED_RATES = (2_000, 5_000, 10_000)  # latency-<rate>.json, one streamer
_SEED = 15
_SAMPLE = 6
"""Most streamers simulated; each is independent, given its share. The busiest is among them."""
_DURATION_S = 30.0
_LOSS_AT_S = 10.0
_BURST_S, _BURST_FACTOR, _BURST_SHARE = 0.5, 2.0, 0.1
"""Assumed: a tenth of the half seconds bring twice the rate of the others; the mean is kept."""
_HEAD = 200_000
"""So many customers, those who pay most, are hashed one by one; the rest spreads evenly."""
_CORES = 2
"""Of each machine of the plan, as of those that were measured; busy to the plan's utilisation."""
_EXCHANGES = 4
"""Of a commit with the broker, one after the other (docs/benchmarks.md)."""
_MOST_BUSY = 0.95
_ZIPF = 0.8
"""Assumed: the customer of rank k pays as k ** -0.8; of 14.4 million the first makes 0.8 %."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Costs:
    """Times of one streamer, seconds.

    Attributes:
        batch_s: Of the main thread, for each batch.
        row_s: Of the main thread, for each of its own transactions.
        commit_s: From a written batch to its reader. The next batches are worked on meanwhile.
        stretch: How many times as long the two fixed times take on average, as others use the
            same cores.
        linger_s: While a commit is under way, a batch waits so long for more rows.
        interval_s: A transaction open for so long is committed though more rows wait.
        max_batch_rows: Most rows of a batch.
    """

    batch_s: float
    row_s: float
    commit_s: float = 0.0
    stretch: float = 1.0
    linger_s: float = 0.006  # _LINGER_S of streamer/commits.py
    interval_s: float = 0.05  # half of FLAGGER_LATENCY_TARGET_MS
    max_batch_rows: int = 4_096  # FLAGGER_MAX_BATCH_ROWS

    @classmethod
    def load(
        cls, figures: Figures, streamers_in_cell: int, folder: Path = _RESULTS, *,
        stretch: float = 1.0,
    ) -> Self:  # fmt: skip
        """Take the fixed times from `rival-per-message.json`, both of lone messages.

        The rival's HTTP call to Triton is the fixed part of a batch. What a message of the stream
        takes besides at 20 tx/s, from event to reader, is the commit.

        Raises:
            DataError: The result is missing, or has no such figure.
        """
        result = _result(folder, "rival-per-message")
        batch_ms = result.median("rival's HTTP call p50")
        whole_ms = result.median("stream, event to decision p50 at 20/s")
        row_us = figures.own_us + figures.side_us * streamers_in_cell
        return cls(batch_ms / 1e3, row_us / 1e6, max(0.0, whole_ms - batch_ms) / 1e3, stretch)


@dataclass(frozen=True, slots=True)
class Outage:
    """A streamer killed at `at_s`, which goes on from its last commit after `recovery_s`."""

    at_s: float
    recovery_s: float


@dataclass(frozen=True, slots=True)
class Served:
    """What became of the arrivals.

    Attributes:
        arrivals_s: Ascending, float64 (messages,).
        committed_s: When a reader sees the decision, float64 (messages,).
        commits: How often it was committed, int64 (messages,).
        busy_s: Time that the main thread worked.
        read_again: Messages that a loss made it read twice.
    """

    arrivals_s: Floats
    committed_s: Floats
    commits: NDArray[np.int64]
    busy_s: float
    read_again: int

    def lag(self) -> tuple[Floats, NDArray[np.int64]]:
        """Return commit times and the messages not yet committed just before each."""
        times, first = np.unique(self.committed_s, return_index=True)
        arrived = np.searchsorted(self.arrivals_s, times, side="right")
        return times, arrived - first


@dataclass(frozen=True, slots=True)
class Simulated:
    """One row of the table; percentiles and utilisation are without the loss."""

    rate: float
    streamers: int
    sampled: int
    p50_ms: float
    p99_ms: float
    utilisation: float
    peak_lag: int
    catch_up_s: float


@dataclass(frozen=True, slots=True)
class Compared:
    """Measured and simulated milliseconds of one streamer at a rate."""

    rate: int
    measured_ms: tuple[float, float]
    simulated_ms: tuple[float, float]


def arrivals_s(rate: float, duration_s: float, rng: np.random.Generator, *, bursts: bool) -> Floats:
    """Return ascending arrival times of a Poisson process, float64 seconds."""
    if not bursts:
        return np.sort(rng.uniform(0, duration_s, rng.poisson(rate * duration_s)))
    starts = np.arange(0, duration_s, _BURST_S)
    factor = np.where(rng.random(len(starts)) < _BURST_SHARE, _BURST_FACTOR, 1.0)
    base = rate / (1 + _BURST_SHARE * (_BURST_FACTOR - 1))
    counts = rng.poisson(base * factor * _BURST_S)
    times = np.repeat(starts, counts) + rng.uniform(0, _BURST_S, counts.sum())
    return np.sort(times)


def shares(partitions: int, streamers: int, customers: float, rng: np.random.Generator) -> Floats:
    """Return each streamer's part of all payments, float64 (streamers,), its sum 1.

    Customers are hashed to partitions; partitions are dealt out in turn.
    """
    head = min(_HEAD, max(1, int(customers)))
    weights = np.arange(1, head + 1, dtype=np.float64) ** -_ZIPF
    rest = max(0.0, (customers ** (1 - _ZIPF) - head ** (1 - _ZIPF)) / (1 - _ZIPF))
    hashed = rng.integers(partitions, size=head)
    of_partition = rest / partitions + np.bincount(hashed, weights, partitions)
    of_streamer = np.bincount(np.arange(partitions) % streamers, of_partition, streamers)
    part: Floats = of_streamer / of_streamer.sum()
    return part


def stretch_of(busy_cores: float, cores: int) -> float:
    """Return how many times as long a piece of work takes, on average, on cores that are shared.

    M/M/c: `1 + C / (c (1 - r))` with Erlang's C, c cores, each busy to the share r; with two cores
    `1 / (1 - r^2)`. Shares above 0.95 count as 0.95: there the theory has no bound.
    """
    share = min(busy_cores / cores, _MOST_BUSY)
    load = share * cores
    all_busy = load**cores / math.factorial(cores) / (1 - share)
    some_free = sum(load**k / math.factorial(k) for k in range(cores))
    return 1 + all_busy / (all_busy + some_free) / (cores * (1 - share))


def serve(
    arrivals: Floats, costs: Costs, outage: Outage | None = None, *, seed: int = _SEED
) -> Served:
    """Run one streamer's loop over ascending arrival times, until all are committed.

    What the fixed times take beyond their least is random: exponential for a batch, which waits for
    one exchange, and the sum of four such waits for a commit.
    """
    rng, extra = np.random.default_rng(seed), costs.stretch - 1
    n, head, opened, read_again = len(arrivals), 0, 0, 0
    free_s = commit_free_s = opened_s = busy_s = 0.0
    committed = np.full(n, np.nan)
    commits = np.zeros(n, dtype=np.int64)
    while opened < n:
        start_s = max(free_s, arrivals[head])
        if commit_free_s > start_s:
            full = head + costs.max_batch_rows - 1
            full_s = arrivals[full] if full < n else np.inf
            start_s = max(start_s, min(start_s + costs.linger_s, full_s))
        waiting = int(np.searchsorted(arrivals, start_s, side="right"))
        end = min(waiting, head + costs.max_batch_rows)
        work_s = costs.batch_s * (1 + rng.exponential(extra)) + costs.row_s * (end - head)
        commit_s = costs.commit_s * (1 + rng.gamma(_EXCHANGES, extra / _EXCHANGES))
        done_s = start_s + work_s
        last_s = done_s if end < n else max(done_s, commit_free_s) + commit_s
        if outage is not None and last_s > outage.at_s:
            # What had not been committed by then is read again.
            again = int(np.searchsorted(committed[:opened], outage.at_s, side="right"))
            read_again, commits[again:], committed[again:] = head - again, 0, np.nan
            head = opened = again
            free_s = commit_free_s = outage.at_s + outage.recovery_s
            outage = None
            continue
        opened_s = start_s if opened == head else opened_s
        busy_s, free_s, caught_up, head = busy_s + work_s, done_s, end == waiting, end
        next_s = max(done_s, arrivals[head]) if head < n else np.inf
        due = caught_up or done_s - opened_s >= costs.interval_s or head == n
        if due and commit_free_s <= next_s:
            commit_free_s = max(done_s, commit_free_s) + commit_s
            committed[opened:head] = commit_free_s
            commits[opened:head] += 1
            opened = head
    return Served(arrivals, committed, commits, busy_s, read_again)


def simulate(
    demand: Demand, figures: Figures, *, seed: int = _SEED, folder: Path = _RESULTS,
    streamers: int | None = None,
) -> Simulated:  # fmt: skip
    """Simulate the streamers of the plan for a demand, or so many in one cell."""
    plan = plan_for(figures, demand)
    cells = plan.cells if streamers is None else 1
    count = streamers or plan.streamers
    partitions = max(plan.partitions * cells, 2 * count)
    rng = np.random.default_rng(seed)
    stretch = stretch_of(demand.utilisation * _CORES, _CORES)
    costs = Costs.load(figures, count // cells, folder, stretch=stretch)
    recovery_s = _result(folder, "recovery-1m").median("restart to first new decision")
    customers = demand.rate * demand.customers_per_tps
    share = np.sort(shares(partitions, count, customers, rng))[::-1]
    # Evenly over the ranks, the busiest first.
    chosen = share[np.linspace(0, count - 1, min(count, _SAMPLE)).round().astype(int)]
    rates = chosen * demand.rate
    runs = [serve(arrivals_s(rate, _DURATION_S, rng, bursts=True), costs) for rate in rates]
    waits = [served.committed_s - served.arrivals_s for served in runs]
    busy = max(served.busy_s for served in runs) / _DURATION_S
    p50, p99 = np.percentile(np.concatenate(waits), (50, 99)) * 1e3
    # The busiest one is lost.
    restart_s = _LOSS_AT_S + recovery_s
    arrivals = arrivals_s(rates[0], restart_s + _DURATION_S, rng, bursts=True)
    usual = int(serve(arrivals, costs).lag()[1].max())
    times, lag = serve(arrivals, costs, Outage(_LOSS_AT_S, recovery_s)).lag()
    catch_up_s = float(times[(times > restart_s) & (lag <= usual)][0] - restart_s)
    return Simulated(
        demand.rate, count, len(chosen), float(p50), float(p99), busy, int(lag.max()), catch_up_s
    )


def compare(figures: Figures, *, seed: int = _SEED, folder: Path = _RESULTS) -> list[Compared]:
    """Simulate the benchmark's rates, one streamer without bursts, beside what was measured."""
    found = []
    for rate in _COMPARED_RATES:
        result = _result(folder, f"latency-{rate}")
        busy = sum(result.median(name) for name in result.figures if name.startswith("CPU "))
        stretch = stretch_of(busy, result.machine.cores)
        arrivals = arrivals_s(rate, _DURATION_S, np.random.default_rng(seed), bursts=False)
        served = serve(arrivals, Costs.load(figures, 1, folder, stretch=stretch))
        p50, p99 = np.percentile(served.committed_s - arrivals, (50, 99)) * 1e3
        measured = (result.median("event to decision p50"), result.median("event to decision p99"))
        found.append(Compared(rate, measured, (float(p50), float(p99))))
    return found


def _result(folder: Path, scenario: str) -> StoredResult:
    remedy = "Measure it again with `flagger bench`, or run from a full checkout."
    return StoredResult.load(folder / f"{scenario}.json", remedy)
