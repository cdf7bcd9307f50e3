"""`alerts-burst`: thousands of payments are flagged at once, as in an attack.

Transactions go into the log as fast as Kafka takes them, and the threshold is so low that each is
flagged. Streamer, alert service and the desk's consumer are processes, the receivers a webhook and
a mail server on this machine. Counted is what people would see: messages at each receiver, alerts
that the messages tell of, and cases on the desk (SQLite).

A run fails if a transaction is not flagged exactly once, a flag is no case, a message tells of too
few or too many, or if there are more messages than the rule lets through: `burst` at once, then
one in `digest_every_s`. The limit of the shipped default, one in 300 s, is shortened, so that the
last digest need not be waited for. What it does not show: a database server that is far away.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow as pa
from sqlalchemy import Engine, func, select

from deploy.local.stack import LocalStack
from flagger.alert import Alert
from flagger.errors import StackError
from flagger.policies import set_policy
from flagger.settings import Settings
from loadtest.alert_parts import RECEIVERS, SINKS, AlertParts
from loadtest.alert_sinks import Told
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import own_outputs, own_topics
from loadtest.observe import metric_values
from loadtest.own_models import copy_repository
from loadtest.topic_reader import read_topic
from review.database import open_engine, transaction
from review.tables import Case
from streamer.produce import ReplayProducer

__all__ = ["SCENARIO", "Seen", "bench_alerts_burst", "faults", "most_messages"]

SCENARIO = "alerts-burst"
BURST = 5
"""Messages that the rule lets through at once; the default of a rule."""
DIGEST_EVERY_S = 5.0
WARM_UP_FLAGS = 200
ARRIVE_S = 120.0
"""Most that a run waits for what has not come."""
_ALL_FLAGGED = 1e-30
"""A review threshold below every score."""
_POLL_S = 0.05
_SETTLE_S = 1.0
"""What comes once too often would come now."""


@dataclass(frozen=True)
class Seen:
    """What a burst has left.

    Attributes:
        sent: Ids of its transactions.
        flagged: Ids of the alerts on the topic.
        cases: Ids of the cases on the desk.
        repeats: Flags that the desk has been given again.
        told: Receiver -> the messages that it has taken.
        logged_s: From the first transaction's sending until Kafka had all.
        stored_s: The same until all flags were cases; as long as was waited if they were not.
        told_s: Receiver -> the same until it was told of all.
        took_s: The same until nothing was waited for any more.
    """

    sent: Sequence[str]
    flagged: Sequence[str]
    cases: Sequence[str]
    repeats: int
    told: dict[str, list[Told]]
    logged_s: float
    stored_s: float
    told_s: dict[str, float]
    took_s: float


def bench_alerts_burst(
    table: pa.Table,
    repository: Path,
    out: Path,
    *,
    flags: int,
    repeats: int,
    on_step: Callable[[str], None],
    servers: Settings | None = None,
) -> BenchResult:
    """Run the scenario; each repeat goes on where the last one ended.

    Args:
        table: Transactions in event-time order.
        repository: Model repository with a live version; it is copied.
        out: Folder for stack, case store and logs.
        flags: Transactions of each burst.
        repeats: How often to measure.
        on_step: Told what happens now.
        servers: Addresses of servers that run already; those are not started.

    Returns:
        The figures; `settings` has one of `verdicts` for each run, and the `reasons` against.

    Raises:
        StackError: A part did not start, or ended; or the table is too short.
    """
    if table.num_rows < WARM_UP_FLAGS + repeats * flags:
        raise StackError(
            f"{repeats} bursts of {flags:,} need {WARM_UP_FLAGS + repeats * flags:,} "
            f"transactions; there are {table.num_rows:,}."
        )
    out.mkdir(parents=True, exist_ok=True)
    copy = copy_repository(repository, out / "repository")
    set_policy(copy, _ALL_FLAGGED, 1.0, why="flagger bench alerts")
    limits = {"burst": BURST, "digest_every_s": DIGEST_EVERY_S}
    result = BenchResult(SCENARIO, {"flags": flags, "partitions": 4, **limits})
    rule = "\n".join(f"{name} = {value}" for name, value in limits.items())
    rules = f'{RECEIVERS}[[rule]]\nname = "all"\nreceivers = ["webhook", "mail"]\n{rule}\n'
    verdicts, reasons = [], []
    with LocalStack(out / "stack", model_repository=copy, settings=servers, fresh=True) as stack:
        settings = _own(stack.settings())
        on_step("start")
        with AlertParts(settings, out, rules, cases=out / "cases.db") as parts:
            world = _World(settings, parts, out / "cases.db")
            on_step("warm up")
            world.burst(table.slice(0, WARM_UP_FLAGS))
            for run in range(repeats):
                on_step(f"run {run + 1} of {repeats}: {flags:,} flags at once")
                time.sleep(BURST * DIGEST_EVERY_S)  # the rule has its whole burst again
                seen = world.burst(table.slice(WARM_UP_FLAGS + run * flags, flags))
                _add_run(result, seen)
                against = faults(seen)
                verdicts.append("FAIL" if against else "PASS")
                reasons += [f"run {run + 1}: {fault}" for fault in against]
            parts.stop()
    result.settings |= {"verdicts": verdicts, "reasons": reasons}
    return result


def _own(base: Settings) -> Settings:
    """Return settings with topics, groups and state of the scenario's own."""
    settings = own_outputs(own_topics(base, SCENARIO), SCENARIO, database=0)
    return settings.model_copy(update={"alerts_group": f"{SCENARIO}-told"})


class _World:
    """Sends bursts and sees what comes of them; remembers what earlier ones have left."""

    def __init__(self, settings: Settings, parts: AlertParts, cases: Path) -> None:
        self._settings = settings
        self._parts = parts
        self._engine: Engine = open_engine(f"sqlite:///{cases}")
        self._flagged: Counter[str] = Counter()
        self._cases: Counter[str] = Counter()
        self._repeats = 0
        self._told = dict.fromkeys(SINKS, 0)

    def burst(self, rows: pa.Table) -> Seen:
        """Send all rows at once and wait until everybody knows, or long enough."""
        start_s = time.monotonic()
        producer = ReplayProducer(self._settings, with_labels=False)
        with contextlib.closing(producer):
            producer.run(rows.to_batches())
        logged_s = time.monotonic() - start_s
        arrived_s = self._wait(rows.num_rows, start_s)
        time.sleep(_SETTLE_S)
        took_s = time.monotonic() - start_s
        told = {name: self._parts.told(name, self._told[name]) for name in SINKS}
        seen = Seen(
            sent=rows["transaction_id"].to_pylist(),
            flagged=list((self._all_flagged() - self._flagged).elements()),
            cases=list((self._all_cases() - self._cases).elements()),
            repeats=self._all_repeats() - self._repeats,
            told=told,
            logged_s=logged_s,
            stored_s=arrived_s.get("desk", took_s),
            told_s={name: arrived_s.get(name, took_s) for name in SINKS},
            took_s=took_s,
        )
        self._flagged.update(seen.flagged)
        self._cases.update(seen.cases)
        self._repeats += seen.repeats
        for name, messages in told.items():
            self._told[name] += len(messages)
        return seen

    def _wait(self, count: int, start_s: float) -> dict[str, float]:
        """Return who has got `count` flags, and how many seconds after the start."""
        arrived_s: dict[str, float] = {}
        while len(arrived_s) < 1 + len(SINKS) and time.monotonic() - start_s < ARRIVE_S:
            self._parts.require_running()
            now = {name: _alerts(self._parts.told(name, self._told[name])) for name in SINKS}
            now["desk"] = self._count_cases() - self._cases.total()
            for name, arrived in now.items():
                if arrived >= count:
                    arrived_s.setdefault(name, time.monotonic() - start_s)
            time.sleep(_POLL_S)
        return arrived_s

    def _all_flagged(self) -> Counter[str]:
        values = read_topic(self._settings, self._settings.alerts_topic).values
        return Counter(msgspec.json.decode(value, type=Alert).transaction_id for value in values)

    def _count_cases(self) -> int:
        with transaction(self._engine) as session:
            return session.scalar(select(func.count()).select_from(Case)) or 0

    def _all_cases(self) -> Counter[str]:
        with transaction(self._engine) as session:
            return Counter(session.scalars(select(Case.transaction_id)))

    def _all_repeats(self) -> int:
        url, name = self._parts.desk_metrics, "flagger_desk_repeats_total"
        return int(sum(metric_values(url, name, "").values()))


def _alerts(told: Sequence[Told]) -> int:
    return sum(message.count for message in told)


def most_messages(took_s: float) -> float:
    """Return the most messages that the rule lets through to one receiver in so many seconds."""
    return BURST + took_s / DIGEST_EVERY_S


def faults(seen: Seen) -> list[str]:
    """Return what is against a run, one sentence each; none if it kept the promise."""
    told = []
    for what, ids in (("an alert on the topic", seen.flagged), ("a case on the desk", seen.cases)):
        count, n = Counter(ids), len(seen.sent)
        missing = [transaction_id for transaction_id in seen.sent if not count[transaction_id]]
        if missing:
            told.append(
                f"{len(missing):,} of {n:,} flags did not become {what}, first {missing[0]}."
            )
        if len(ids) > len(count):
            told.append(f"{len(ids) - len(count):,} flags became {what} more than once.")
    if seen.repeats:
        told.append(f"The desk was given {seen.repeats:,} flags again.")
    for name, messages in seen.told.items():
        if (alerts := _alerts(messages)) != len(seen.sent):
            told.append(f"{name} was told of {alerts:,} alerts, not of {len(seen.sent):,}.")
        if len(messages) > (most := most_messages(seen.took_s)):
            told.append(
                f"{name} got {len(messages):,} messages in {seen.took_s:.1f} s; the rule lets "
                f"{most:.0f} through."
            )
    return told


def _add_run(result: BenchResult, seen: Seen) -> None:
    result.add("flags", len(seen.flagged), "")
    result.add("cases on the desk", len(set(seen.cases)), "")
    result.add("flags lost from the desk", len(set(seen.sent) - set(seen.cases)), "")
    result.add("flags given to the desk again", seen.repeats, "")
    result.add("all in Kafka", seen.logged_s, "s")
    result.add("all on the desk", seen.stored_s, "s")
    for name, messages in seen.told.items():
        result.add(f"messages to {name}", len(messages), "")
        result.add(f"alerts told to {name}", _alerts(messages), "")
        result.add(f"all told to {name}", seen.told_s[name], "s")
    result.add("messages that the rule lets through", most_messages(seen.took_s), "")
