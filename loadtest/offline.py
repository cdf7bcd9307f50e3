"""The offline replay of a log, and what must hold between it and the decisions that came out."""

from __future__ import annotations

import itertools
import time
from dataclasses import asdict, dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.features import DUPLICATE, FeatureContract, FeatureEngine, LabelBatch
from flagger.features.hashing import key_of
from flagger.state.records import TERMINAL_BUCKET_MS
from flagger.wire.decode import DecodedBatch, decode_transactions
from flagger.wire.messages import Decision, Label
from loadtest.topic_reader import Records

__all__ = ["LogReplay", "Verdict", "compare", "replay_log"]

TOLERANCE = 1e-5
"""Largest difference of scores between the offline model and Triton."""


@dataclass(frozen=True, slots=True)
class LogReplay:
    """The transactions topic, computed again by the offline path.

    Attributes:
        key: Transaction keys of the good messages that are no repeats, uint64 [n].
        rows: Their feature rows, float32 [n, F].
        hashes: Fingerprints of the rows, uint64 [n].
        by_gateway: True where the gateway had decided, bool [n].
        repeats: Messages that repeat an earlier transaction.
        unreadable: Messages that are no transaction.
    """

    key: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.float32]
    hashes: npt.NDArray[np.uint64]
    by_gateway: npt.NDArray[np.bool_]
    repeats: int
    unreadable: int


def _order(log: Records, decoded: DecodedBatch) -> npt.NDArray[np.intp]:
    """Return an order by event time that keeps each partition in log order."""
    times = decoded.transactions.event_time_ms
    partitions = log.partition[decoded.source]
    offsets = log.offset[decoded.source]
    reached = np.empty(len(times), dtype=np.int64)
    for p in np.unique(partitions):
        mine = np.flatnonzero(partitions == p)
        mine = mine[np.argsort(offsets[mine])]
        reached[mine] = np.maximum.accumulate(times[mine])
    return np.lexsort((offsets, partitions, reached))


def _labels(labels: Records) -> LabelBatch:
    decoder = msgspec.json.Decoder(Label)
    read = [decoder.decode(value) for value in labels.values]
    n = len(read)
    return LabelBatch(
        np.fromiter((key_of(v.transaction_id) for v in read), dtype=np.uint64, count=n),
        np.fromiter((key_of(v.terminal_id) for v in read), dtype=np.uint64, count=n),
        np.fromiter((v.event_time_ms for v in read), dtype=np.int64, count=n),
        np.fromiter((v.is_fraud for v in read), dtype=np.uint8, count=n),
    )


def replay_log(log: Records, labels: Records, contract: FeatureContract) -> LogReplay:
    """Compute the rows of everything in the log, half day by half day, labels in between."""
    decoded = decode_transactions(log.values, time.time_ns() // 1_000_000, log.timestamp_ms)
    order = _order(log, decoded)
    transactions = decoded.transactions.take(order)
    known = _labels(labels)
    label_buckets = known.event_time_ms // TERMINAL_BUCKET_MS
    buckets = np.maximum.accumulate(transactions.event_time_ms) // TERMINAL_BUCKET_MS
    engine = FeatureEngine(contract)
    rows, flags, hashes = [], [], []
    cuts = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
    applied = -(2**62)
    for start, end in itertools.pairwise(cuts):
        if start == end:
            continue
        due = (label_buckets >= applied) & (label_buckets < buckets[start])
        applied = int(buckets[start])
        if due.any():
            engine.apply_labels(known.take(np.flatnonzero(due)))
        part = engine.process(transactions.take(slice(start, end)))
        rows.append(part.rows)
        flags.append(part.flags)
        hashes.append(part.hashes())
    fresh = np.concatenate(flags) & DUPLICATE == 0
    by_gateway = np.zeros(len(order), dtype=np.bool_)
    by_gateway[list(decoded.decided)] = True
    return LogReplay(
        key=transactions.transaction_key[fresh],
        rows=np.concatenate(rows)[fresh],
        hashes=np.concatenate(hashes)[fresh],
        by_gateway=by_gateway[order][fresh],
        repeats=int((~fresh).sum()),
        unreadable=len(decoded.bad),
    )


@dataclass(slots=True)
class Verdict:
    """What a run did to the transactions it was given; all but `decided` must be 0.

    Attributes:
        decided: Transactions with exactly one decision.
        lost: Transactions in the log without a decision.
        doubled: Decisions beyond the first of their transaction.
        unexpected: Decisions on transactions that are not in the log.
        different_features: Decisions of the streamer on other features than the offline replay's.
        different_scores: Decisions of the streamer further than `TOLERANCE` from the offline score.
        largest_score_difference: Over the streamer's decisions.
        dead_letters_missing: Unreadable messages without a dead letter, or the reverse.
    """

    decided: int = 0
    lost: int = 0
    doubled: int = 0
    unexpected: int = 0
    different_features: int = 0
    different_scores: int = 0
    largest_score_difference: float = 0.0
    dead_letters_missing: int = 0
    details: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Names of the counts that should be 0 and are not."""
        zero = set(asdict(self)) - {"decided", "largest_score_difference", "details"}
        return sorted(name for name in zero if getattr(self, name))


def compare(
    replay: LogReplay,
    offline_scores: npt.NDArray[np.float32],
    decisions: list[Decision],
    dead_letters: int,
) -> Verdict:
    """Hold the decisions against the offline replay.

    Args:
        replay: Of the whole log.
        offline_scores: The model's scores of `replay.rows` without Triton, float32 [n].
        decisions: Everything on the decisions topic.
        dead_letters: Messages on the dead-letter topic.
    """
    place = {key: i for i, key in enumerate(replay.key.tolist())}
    verdict = Verdict(dead_letters_missing=abs(replay.unreadable - dead_letters))
    seen = np.zeros(len(replay.key), dtype=np.bool_)
    for decision in decisions:
        i = place.get(key_of(decision.transaction_id))
        if i is None:
            verdict.unexpected += 1
            continue
        if seen[i]:
            verdict.doubled += 1
            continue
        seen[i] = True
        if replay.by_gateway[i]:
            continue
        if decision.feature_hash != f"{int(replay.hashes[i]):016x}":
            verdict.different_features += 1
            if len(verdict.details) < 10:
                verdict.details.append(f"features of {decision.transaction_id} differ")
        difference = abs((decision.score or 0.0) - float(offline_scores[i]))
        verdict.largest_score_difference = max(verdict.largest_score_difference, difference)
        verdict.different_scores += difference > TOLERANCE
    verdict.decided = int(seen.sum())
    verdict.lost = int((~seen).sum())
    return verdict
