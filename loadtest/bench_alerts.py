"""`alerts-<rate>`: from a transaction's production to the alert in a mailbox and at a webhook.

A streamer and `flagger alerts run` at a constant rate; the sinks are a process of their own. The
rule's limit is set so high that it never holds a message back: a message takes along what has come
while the one before was under way.
After the warm-up the thresholds are set so that 1 % is flagged, as no model's own are: few alerts
would show no percentiles. What it does not show: a mail server or chat service that is far away or
slow, which adds its own time to each message, and the limits that a real rule has, which make
digests of what is too much.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from deploy.local.stack import LocalStack
from flagger.alert import Alert
from flagger.errors import StackError
from flagger.live import FOLLOW_INTERVAL_S
from flagger.policies import set_policy
from flagger.settings import Settings
from flagger.wire.messages import Decision
from loadtest.alert_parts import RECEIVERS, SINKS, AlertParts
from loadtest.alert_sinks import Told
from loadtest.bench_result import BenchResult
from loadtest.observe import DecisionFollower, wait_for_decided
from loadtest.own_models import copy_repository
from loadtest.topic_reader import Records
from streamer.produce import Pace, ReplayProducer
from streamer.topics import ensure_topics

__all__ = ["bench_alerts"]

WARM_UP_S = 15.0
MEASURED_S = 20.0
FLAGGED_SHARE = 0.01
"""A quarter of these is declined."""
_POINTS = (50, 99)
_ARRIVE_S = 10.0
_RULES = f"""{RECEIVERS}
[[rule]]
name = "all"
receivers = ["webhook", "mail"]
burst = 100_000
named = 1_000
"""


def bench_alerts(
    table: pa.Table,
    repository: Path,
    out: Path,
    *,
    rate_per_s: float,
    repeats: int,
    on_step: Callable[[str], None],
) -> BenchResult:
    """Run the scenario; each repeat goes on where the last one ended.

    Args:
        table: Transactions in event-time order; enough for the rate and the time.
        repository: Model repository with a live version.
        out: Folder for the stack and the logs.
        rate_per_s: Transactions per second.
        repeats: How often to measure.
        on_step: Told what happens now.

    Raises:
        StackError: A part did not start, or an alert reached nobody.
    """
    result = BenchResult(f"alerts-{rate_per_s:.0f}", {"rate_per_s": rate_per_s, "partitions": 4})
    out.mkdir(parents=True, exist_ok=True)
    copy = copy_repository(repository, out / "repository")  # its thresholds are changed
    sent = 0
    with LocalStack(out / "stack", model_repository=copy, fresh=True) as stack:
        settings = stack.settings(Settings())
        ensure_topics(settings)
        followed = settings.model_copy(update={"decisions_topic": settings.alerts_topic})
        producer = ReplayProducer(settings)
        with contextlib.closing(producer), AlertParts(settings, out, _RULES) as parts:
            for run in range(repeats + 1):
                on_step(f"run {run} of {repeats}" if run else "warm up")
                rows = table.slice(sent, int(rate_per_s * (MEASURED_S if run else WARM_UP_S)))
                before = {name: len(parts.told(name)) for name in SINKS}
                with DecisionFollower(followed if run else settings) as follower:
                    producer.run(rows.to_batches(), Pace(rate_per_s))
                    sent += rows.num_rows
                    wait_for_decided(parts.stream_metrics, parts.streamer, sent)
                    time.sleep(1)  # the last commit reaches the follower
                if not run:
                    _flag_share(copy, follower.records)
                    time.sleep(2 * FOLLOW_INTERVAL_S)
                    continue
                for name in SINKS:
                    _add(result, name, follower.records, partial(parts.told, name, before[name]))
                result.add("alerts", len(follower.records), "")
            parts.stop()
    return result


def _flag_share(repository: Path, decisions: Records) -> None:
    """Set thresholds by which FLAGGED_SHARE of these decisions would have been flagged."""
    found = [msgspec.json.decode(value, type=Decision).score for value in decisions.values]
    scores = np.array([score for score in found if score is not None])
    review, decline = np.quantile(scores, [1 - FLAGGED_SHARE, 1 - FLAGGED_SHARE / 4])
    set_policy(repository, float(review), float(decline), why="flagger bench alerts")


def _add(result: BenchResult, name: str, alerts: Records, read: Callable[[], list[Told]]) -> None:
    """Add one receiver's figures: every alert by its own id, as the receiver saw it.

    Args:
        result: Gets them.
        name: The receiver.
        alerts: What is on the topic.
        read: Returns the messages that the receiver has taken.

    Raises:
        StackError: An alert that is on the topic did not come.
    """
    ids = [msgspec.json.decode(value, type=Alert).transaction_id for value in alerts.values]
    came: dict[str, float] = {}
    deadline_s = time.monotonic() + _ARRIVE_S
    while True:
        told = read()
        for message in told:
            for transaction_id in message.transaction_ids:
                came.setdefault(transaction_id, message.at_ms)
        missing = [transaction_id for transaction_id in ids if transaction_id not in came]
        if not missing:
            break
        if time.monotonic() > deadline_s:
            raise StackError(
                f"{len(missing):,} of {len(ids):,} alerts were not named to {name}, the first is "
                f"{missing[0]}. A message names 1,000 at most: is the machine too slow?"
            )
        time.sleep(0.1)
    latencies_ms = np.array([came[i] for i in ids]) - alerts.timestamp_ms
    for point in _POINTS:
        value = float(np.percentile(latencies_ms, point))
        result.add(f"event to {name} p{point}", value, "ms")
    result.add(f"messages to {name}", len(told), "")
