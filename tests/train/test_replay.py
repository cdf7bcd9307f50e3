"""Replay against a plain loop in which each label arrives exactly one label delay late."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from flagger.errors import DataError
from flagger.features import (
    CATEGORY_FIELDS,
    DUPLICATE,
    FEATURE_NAMES,
    FeatureContract,
    FeatureEngine,
    LabelBatch,
)
from flagger.state.records import DAY_MS
from train.replay import Replay, replay
from train.simulate import SimulationConfig, simulate
from train.sources import SCHEMA, to_batch

CONFIG = SimulationConfig(customers=60, terminals=12, days=45, seed=5)


def contract(label_delay_days: int) -> FeatureContract:
    return FeatureContract(
        {name: ("EUR", "pos", "DE") for name in CATEGORY_FIELDS}, label_delay_days
    )


@pytest.fixture(scope="module")
def history() -> pa.Table:
    """Much fraud, equal times, and some transactions again at once, at another terminal."""
    table = pa.Table.from_batches(simulate(CONFIG)).combine_chunks()
    rng = np.random.default_rng(0)
    n = table.num_rows
    repeated = np.sort(np.concatenate([np.arange(n), rng.integers(0, n, n // 50)]))
    table = table.take(repeated)
    again = np.append(False, repeated[1:] == repeated[:-1])
    terminals = np.where(again, "T0000001", table["terminal_id"].to_numpy())
    table = table.set_column(3, SCHEMA.field("terminal_id"), pa.array(terminals, pa.string()))
    fraud = (rng.random(n) < 0.08)[repeated]
    minutes = table["event_time"].cast(pa.int64()).to_numpy() // 600_000 * 600_000
    table = table.set_column(
        1, SCHEMA.field("event_time"), pa.array(minutes).cast(pa.timestamp("ms", "UTC"))
    )
    return table.set_column(9, SCHEMA.field("is_fraud"), pa.array(fraud))


def plain_loop(
    table: pa.Table, label_delay_days: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    engine = FeatureEngine(contract(label_delay_days))
    batch = to_batch(table.combine_chunks().to_batches()[0])
    is_fraud = table["is_fraud"].to_numpy()
    waiting: deque[tuple[int, LabelBatch]] = deque()
    rows, flags = [], []
    for i in range(len(batch)):
        one = batch.take(slice(i, i + 1))
        now_ms = int(one.event_time_ms[0])
        while waiting and waiting[0][0] <= now_ms:
            engine.apply_labels(waiting.popleft()[1])
        result = engine.process(one)
        rows.append(result.rows)
        flags.append(result.flags)
        if is_fraud[i] and not result.flags[0] & DUPLICATE:
            label = LabelBatch(
                one.transaction_key, one.terminal_key, one.event_time_ms, np.ones(1, np.uint8)
            )
            waiting.append((now_ms + label_delay_days * DAY_MS, label))
    return np.concatenate(rows), np.concatenate(flags)


@pytest.mark.parametrize("label_delay_days", [0, 1, 7])
@pytest.mark.parametrize("chunk_rows", [7, 100_000])
def test_replay_equals_labels_released_at_the_delay(
    history: pa.Table, label_delay_days: int, chunk_rows: int
) -> None:
    rows, flags = plain_loop(history, label_delay_days)
    chunks = history.to_batches(max_chunksize=chunk_rows)
    results = list(replay(chunks, contract(label_delay_days)))
    assert [len(result.rows) for result in results] == [chunk.num_rows for chunk in chunks]
    assert np.concatenate([result.rows for result in results]).tobytes() == rows.tobytes()
    assert np.concatenate([result.flags for result in results]).tobytes() == flags.tobytes()
    # The comparison means something: frauds were seen at terminals, and repeats occurred.
    assert np.nanmax(rows[:, FEATURE_NAMES.index("terminal_fraud_count_7d")]) >= 3
    assert (flags & DUPLICATE).any()


def row(number: int, time_ms: int, **changes: Any) -> dict[str, Any]:
    return {
        "transaction_id": f"t{number}",
        "event_time": time_ms,
        "customer_id": "c",
        "terminal_id": "m",
        "amount": 1.0,
        **changes,
    }


def batch_of(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    empty = dict.fromkeys(SCHEMA.names)
    return pa.RecordBatch.from_pylist([empty | r for r in rows], schema=SCHEMA)


START_MS = 1_767_225_600_000


def test_unknown_outcomes_count_as_genuine() -> None:
    chunk = batch_of([row(0, START_MS), row(1, START_MS + 20 * DAY_MS)])
    result = next(replay([chunk], contract(7)))
    assert result.rows[1, FEATURE_NAMES.index("terminal_count_30d")] == 1
    assert result.rows[1, FEATURE_NAMES.index("terminal_fraud_count_30d")] == 0


def test_disorder_is_refused_within_and_between_chunks() -> None:
    with pytest.raises(DataError, match="Sort them"):
        list(replay([batch_of([row(0, START_MS), row(1, START_MS - 1)])], contract(7)))
    with pytest.raises(DataError, match="Sort them"):
        list(replay([batch_of([row(0, START_MS)]), batch_of([row(1, START_MS - 1)])], contract(7)))


def test_pending_labels_are_in_the_state_at_the_end() -> None:
    history = Replay(contract(7))
    batch = to_batch(batch_of([row(0, START_MS)]))
    history.advance(batch, np.array([True]))
    assert history.engine.terminals.records["frauds"].sum() == 0
    history.apply_pending_labels()
    assert history.engine.terminals.records["frauds"].sum() == 1
    assert len(history.advance(batch.take(slice(0, 0)), np.empty(0, bool)).rows) == 0
