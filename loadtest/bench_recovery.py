"""`recovery-1m`: from the restart after kill -9 to the next committed decision.

Before the first kill one streamer has worked off a topic in which each customer has a transaction:
Valkey and the log hold the state of all customers and terminals as the streamer itself left it.
Then transactions come at a steady rate, from customers at random. The clock of a repeat runs from
the moment the new process is started until a reader of committed messages has a decision of a
transaction that was sent after the kill: nobody but the new process can have made it.

What it does not show: the time until somebody notices the death and starts a new process, machines
that die as a whole, and histories that are longer than one transaction per customer (records have a
fixed size, so this should not matter).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import psutil
import valkey

from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.settings import Settings
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import (
    BenchStreamer,
    count_records,
    iter_topic,
    own_outputs,
    own_topics,
)
from loadtest.crowd import Crowd
from loadtest.observe import DecisionFollower, wait_for_decided
from loadtest.processes import wait_for_url
from loadtest.topic_reader import Records
from streamer.produce import Pace, ReplayProducer

__all__ = ["RecoveryPlan", "bench_recovery"]

SCENARIO = "recovery-1m"
CAUGHT_UP_MS = 250.0
"""A decision that comes so soon after its transaction shows that the backlog is gone."""
_LIMIT_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True)
class RecoveryPlan:
    """What to run.

    Attributes:
        customers: Customers in state.
        terminals: Terminals in state, at most as many.
        rate_per_s: Transactions per second while the streamer is killed.
        settle_s: Steady traffic before each kill.
        seed: Of the transactions.
    """

    customers: int = 1_000_000
    terminals: int = 100_000
    rate_per_s: float = 2_000.0
    settle_s: float = 5.0
    seed: int = 17

    @property
    def scenario(self) -> str:
        """Its id; only the size that the id names has the permanent one."""
        return SCENARIO if self.customers == 1_000_000 else f"recovery-{self.customers}"


@contextmanager
def _traffic(producer: ReplayProducer, crowd: Crowd, rate_per_s: float) -> Iterator[None]:
    """Send steadily while the context lasts; it ends when the broker has everything."""
    ended = threading.Event()
    batches = crowd.steady(rate_per_s, lambda: not ended.is_set())
    with ThreadPoolExecutor(1, thread_name_prefix="traffic") as pool:
        sending = pool.submit(producer.run, batches, Pace(rate_per_s))
        try:
            yield
        finally:
            ended.set()
        sending.result()


def bench_recovery(
    plan: RecoveryPlan,
    repository: Path,
    out: Path,
    *,
    repeats: int,
    on_step: Callable[[str], None],
    servers: Settings | None = None,
) -> BenchResult:
    """Run the scenario on a fresh embedded stack.

    Args:
        plan: Sizes and rate.
        repository: Model repository with a live version.
        out: Folder for the stack and the logs.
        repeats: How often to kill.
        on_step: Told what happens now.
        servers: Addresses of servers that run already; those are not started.

    Raises:
        StackError: A part failed, or a transaction has not exactly one decision at the end.
    """
    result = BenchResult(
        plan.scenario,
        {
            "customers": plan.customers,
            "terminals": plan.terminals,
            "rate_per_s": plan.rate_per_s,
            "partitions": 4,
        },
    )
    out.mkdir(parents=True, exist_ok=True)
    log = out / "stream.log"
    with LocalStack(
        out / "stack", model_repository=repository, settings=servers, fresh=True
    ) as stack:
        settings = own_outputs(
            own_topics(stack.settings(), plan.scenario), plan.scenario, database=0
        )
        crowd = Crowd(customers=plan.customers, terminals=plan.terminals, seed=plan.seed)
        producer = ReplayProducer(settings, with_labels=False)
        streamer = BenchStreamer(settings, log)
        try:
            on_step("fill the state")
            _fill(streamer, producer, crowd, plan, settings)
            memory = psutil.Process(streamer.process.pid).memory_info().rss
            result.add("streamer's memory with all in it", memory / 2**20, "MiB")
            with _traffic(producer, crowd, plan.rate_per_s):
                for run in range(repeats):
                    on_step(f"run {run + 1} of {repeats}")
                    time.sleep(plan.settle_s)
                    streamer = _kill_and_restart(streamer, settings, log, result)
            on_step("count the decisions")
            _require_one_decision_each(settings, streamer, producer.sent)
        finally:
            streamer.process.kill()
            producer.close()
    return result


def _fill(
    streamer: BenchStreamer,
    producer: ReplayProducer,
    crowd: Crowd,
    plan: RecoveryPlan,
    settings: Settings,
) -> None:
    """Stream the first transactions, and wait until Valkey has a record of every entity."""
    wait_for_url(streamer.metrics_url, streamer.process)
    producer.run(crowd.first())
    wait_for_decided(streamer.metrics_url, streamer.process, plan.customers)
    expected = plan.customers + plan.terminals
    deadline_s = time.monotonic() + _LIMIT_S
    with valkey.Valkey.from_url(settings.valkey_url or "") as client:
        while (stored := client.dbsize()) < expected:
            if time.monotonic() > deadline_s:
                raise StackError(f"Valkey has {stored:,} keys; {expected:,} records were due.")
            time.sleep(_POLL_S)


def _kill_and_restart(
    streamer: BenchStreamer, settings: Settings, log: Path, result: BenchResult
) -> BenchStreamer:
    """Kill the streamer, start a new one, measure until it has caught up; return it."""
    with DecisionFollower(settings) as follower:
        killed_ms = time.time() * 1000
        streamer.process.kill()
        restarted_ms = time.time() * 1000
        streamer = BenchStreamer(settings, log)
        deadline_s = time.monotonic() + _LIMIT_S
        while True:
            streamer.process.require_running()
            new = _since(follower.records, killed_ms)
            delays_ms = new.read_ms - new.timestamp_ms
            if (delays_ms < CAUGHT_UP_MS).any():
                break
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"The restarted streamer has not caught up in {_LIMIT_S:.0f} s. Its log ends "
                    f"with:\n{streamer.process.tail()}"
                )
            time.sleep(_POLL_S)
    caught_up_ms = float(new.read_ms[delays_ms < CAUGHT_UP_MS].min())
    first_ms = float(new.read_ms.min())
    result.add("restart to first new decision", (first_ms - restarted_ms) / 1000, "s")
    result.add("restart to backlog gone", (caught_up_ms - restarted_ms) / 1000, "s")
    result.add("longest wait of a transaction", float(delays_ms.max()) / 1000, "s")
    result.add("messages read again", streamer.metric("replayed_total"), "")
    return streamer


def _since(records: Records, moment_ms: float) -> Records:
    """Return the decisions of transactions that were sent after a moment."""
    late = records.timestamp_ms > moment_ms
    return Records(
        [value for value, keep in zip(records.values, late.tolist(), strict=True) if keep],
        records.partition[late],
        records.offset[late],
        records.timestamp_ms[late],
        records.read_ms[late],
    )


class _Id(msgspec.Struct):
    transaction_id: str


def _require_one_decision_each(settings: Settings, streamer: BenchStreamer, sent: int) -> None:
    """Wait for the last decision, end the streamer, and raise StackError unless all ids fit."""
    deadline_s = time.monotonic() + _LIMIT_S
    while count_records(settings, settings.decisions_topic) < sent:
        streamer.process.require_running()
        if time.monotonic() > deadline_s:
            break  # the count below says how many are missing
        time.sleep(_POLL_S)
    streamer.process.stop()
    decode = msgspec.json.Decoder(_Id).decode
    found = np.zeros(sent, dtype=np.int64)
    for part in iter_topic(settings, settings.decisions_topic):
        for value in part.values:
            found[int(decode(value).transaction_id[1:])] += 1
    if (found != 1).any():
        raise StackError(
            f"Of {sent:,} transactions, {int((found == 0).sum()):,} have no decision and "
            f"{int((found > 1).sum()):,} have more than one."
        )
