"""What must hold after any crash: each transaction decided once, state equal to the replay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.features import (
    DUPLICATE,
    ActivityBatch,
    FeatureContract,
    FeatureEngine,
    LabelBatch,
    LogPositions,
    TransactionBatch,
)
from flagger.features.hashing import key_of
from flagger.models import ModelVersion
from flagger.settings import Settings
from flagger.state.records import TERMINAL_BUCKET_MS
from flagger.state.store import Kind, StateStore
from flagger.wire.decode import decode_transactions
from flagger.wire.messages import Decision, parse_label
from loadtest.offline import Verdict, compare, replay_log
from loadtest.topic_reader import Records, read_topic, wait_for_open_transactions
from streamer.log_ends import LogEnds

__all__ = ["CrashVerdict", "check", "distance_to_end", "expected_state"]

_LOG_FIELDS = {"activity_offset"}
"""Where in the activity log a record stands depends on how many commits there were."""


@dataclass(frozen=True, slots=True)
class CrashVerdict:
    """What came out of a run with crashes.

    Attributes:
        decisions: Of the comparison with the offline replay.
        state: What is wrong with the stored records; empty: equal to the replay, bit for bit.
    """

    decisions: Verdict
    state: list[str]

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, in words."""
        found = [f"{name}: {getattr(self.decisions, name)}" for name in self.decisions.failures]
        return [*found, *self.decisions.details, *self.state]


def expected_state(
    log: Records, labels: Records, contract: FeatureContract
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the CUSTOMER and the TERMINAL records after everything in the logs.

    Customers are moved by their own transactions only, so their partitions' log order is enough;
    terminals by counts and labels.
    """
    decoded = decode_transactions(log.values, time.time_ns() // 1_000_000, log.timestamp_ms)
    partition, offset = log.partition[decoded.source], log.offset[decoded.source]
    order = np.lexsort((offset, partition))
    engine = FeatureEngine(contract)
    transactions = decoded.transactions.take(order)
    positions = LogPositions(partition[order], offset[order])
    flags = engine.process(transactions, positions, count_at_terminals=False).flags
    counted = flags & DUPLICATE == 0
    _count_at_terminals(engine, transactions.take(np.flatnonzero(counted)), labels)
    # A terminal that was only asked for has a blank record, which nobody stores.
    return engine.customers.take_dirty(), engine.terminals.take_dirty()


def _count_at_terminals(
    engine: FeatureEngine, transactions: TransactionBatch, labels: Records
) -> None:
    """Apply counts and labels half day by half day: a label may not come after its ring has gone.

    Labels are taken in log order, up to the first one of a later half day.
    """
    label_batch, offsets = _labels(labels)
    due = np.maximum.accumulate(label_batch.event_time_ms // TERMINAL_BUCKET_MS)
    bucket = transactions.event_time_ms // TERMINAL_BUCKET_MS
    applied = 0
    for i, b in enumerate(np.unique(bucket).tolist()):
        keys, counts = np.unique(transactions.terminal_key[bucket == b], return_counts=True)
        buckets = np.full(len(keys), b, dtype=np.int32)
        engine.apply_activity(ActivityBatch(keys, buckets, counts.astype(np.uint32)), i)
        end = int(np.searchsorted(due, b, side="right"))
        rows = np.arange(applied, end)
        engine.apply_labels(label_batch.take(rows), offsets[rows])
        applied = end


def _labels(labels: Records) -> tuple[LabelBatch, npt.NDArray[np.int64]]:
    read = [parse_label(value, time.time_ns() // 1_000_000) for value in labels.values]
    n = len(read)
    batch = LabelBatch(
        np.fromiter((key_of(v.transaction_id) for v in read), dtype=np.uint64, count=n),
        np.fromiter((key_of(v.terminal_id) for v in read), dtype=np.uint64, count=n),
        np.fromiter((v.event_time_ms for v in read), dtype=np.int64, count=n),
        np.fromiter((v.is_fraud for v in read), dtype=np.uint8, count=n),
    )
    return batch, labels.offset


def _differences(kind: Kind, stored: npt.NDArray[Any], expected: npt.NDArray[Any]) -> list[str]:
    """Return what differs between two sets of records, field by field: padding does not count."""
    stored = stored[np.argsort(stored["key"])]
    expected = expected[np.argsort(expected["key"])]
    if not np.array_equal(stored["key"], expected["key"]):
        missing = len(np.setdiff1d(expected["key"], stored["key"]))
        extra = len(np.setdiff1d(stored["key"], expected["key"]))
        return [f"{kind} records: {missing} of {len(expected)} are missing, {extra} are too many"]
    found = []
    for name in stored.dtype.names or ():
        mine, theirs = stored[name], expected[name]
        if name not in _LOG_FIELDS and mine.tobytes() != theirs.tobytes():
            rows = (mine != theirs).reshape(len(mine), -1).any(axis=1)
            found.append(f"{kind} records: {name} differs in {int(rows.sum())} of {len(mine)}")
    return found


def distance_to_end(settings: Settings) -> dict[str, int]:
    """Return log -> messages that the stored marks do not include yet; empty: all is stored."""
    store, ends = StateStore(settings.valkey_url or ""), LogEnds(settings)
    try:
        group = settings.consumer_group
        marks = store.read_marks(group)
        side_marks = store.read_marks(f"{group}:side-logs")
        behind = {
            f"{settings.transactions_topic}-{p}": ends.end(settings.transactions_topic, p)
            - marks.get(str(p), 0)
            for p in range(settings.partitions)
        }
        for topic in (settings.activity_topic, settings.labels_topic):
            behind[topic] = ends.end(topic, 0) - side_marks.get(topic, 0)
    finally:
        ends.close()
        store.close()
    return {name: count for name, count in behind.items() if count > 0}


def check(
    settings: Settings,
    model: ModelVersion,
    score: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
) -> CrashVerdict:
    """Hold the decisions and the stored records against the offline replay of the same log.

    Args:
        settings: Of a streamer that has stored everything (`distance_to_end` is empty).
        model: What it decided by.
        score: The model's scores of feature rows, float32 [n, F] -> float32 [n], without Triton.
    """
    for topic in (settings.decisions_topic, settings.dead_letter_topic):
        wait_for_open_transactions(settings, topic)
    log = read_topic(settings, settings.transactions_topic)
    labels = read_topic(settings, settings.labels_topic)
    replay = replay_log(log, labels, model.contract)
    decoder = msgspec.json.Decoder(Decision)
    decisions = [
        decoder.decode(value) for value in read_topic(settings, settings.decisions_topic).values
    ]
    dead_letters = len(read_topic(settings, settings.dead_letter_topic))
    verdict = compare(replay, score(replay.rows), decisions, dead_letters)
    customers, terminals = expected_state(log, labels, model.contract)
    store = StateStore(settings.valkey_url or "")
    try:
        state = [
            *_differences("customer", store.read_all("customer"), customers),
            *_differences("terminal", store.read_all("terminal"), terminals),
        ]
    finally:
        store.close()
    return CrashVerdict(verdict, state)
