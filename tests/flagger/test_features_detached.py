"""Rows computed on copies of records, as the gateway does, against rows of an engine."""

from __future__ import annotations

import numpy as np
import pytest

from flagger.features import CATEGORY_FIELDS, FeatureContract, FeatureEngine, TransactionBatch
from flagger.state.store import decode_records

START_MS = 1_700_006_400_000
CONTRACT = FeatureContract({name: ("a", "b") for name in CATEGORY_FIELDS})
N_HISTORY = 200


def random_batch(n: int, first: int, customers: int, terminals: int) -> TransactionBatch:
    rng = np.random.default_rng(first)
    return TransactionBatch(
        transaction_key=np.arange(first + 1, first + 1 + n, dtype=np.uint64),
        customer_key=rng.integers(1, 1 + customers, n).astype(np.uint64),
        terminal_key=rng.integers(1, 1 + terminals, n).astype(np.uint64),
        event_time_ms=START_MS + (first + np.arange(n)) * 60_000,
        amount=rng.lognormal(3, 1, n),
        category_keys=rng.integers(0, 3, (n, 4)).astype(np.uint64),
    )


@pytest.fixture(scope="module")
def engine() -> FeatureEngine:
    """Return one with the history of one customer at four terminals; others are unknown."""
    engine = FeatureEngine(CONTRACT)
    engine.process(random_batch(N_HISTORY, 0, customers=1, terminals=4))
    return engine


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("known", [0, 1], ids=["new customer", "known customer"])
def test_rows_on_copies_equal_those_of_a_table(engine: FeatureEngine, n: int, known: int) -> None:
    batch = random_batch(n, N_HISTORY, customers=1, terminals=6)  # two of them are new
    customers = engine.customers.records[: len(engine.customers)][:known]
    terminals = engine.terminals.records[: len(engine.terminals)]
    # As the store gives them: they cannot be written to.
    read = [
        decode_records("customer", [record.tobytes() for record in customers]),
        decode_records("terminal", [record.tobytes() for record in terminals]),
    ]
    before = [records.tobytes() for records in read]

    rows = engine.process_detached(batch, *read)

    other = FeatureEngine(CONTRACT)
    other.customers.load(read[0])
    other.terminals.load(read[1])
    expected = other.process(batch, count_at_terminals=False)
    np.testing.assert_array_equal(rows.rows, expected.rows)
    np.testing.assert_array_equal(rows.flags, expected.flags)
    assert [records.tobytes() for records in read] == before


def test_a_record_of_another_customer_is_not_used(engine: FeatureEngine) -> None:
    batch = random_batch(1, N_HISTORY, customers=1, terminals=1)
    other = TransactionBatch(
        batch.transaction_key,
        batch.customer_key + np.uint64(7),
        batch.terminal_key,
        batch.event_time_ms,
        batch.amount,
        batch.category_keys,
    )
    record = engine.customers.records[:1]
    none = engine.terminals.records[:0]
    with_record = engine.process_detached(other, record, none).rows
    np.testing.assert_array_equal(
        with_record, engine.process_detached(other, record[:0], none).rows
    )
    assert (engine.process_detached(batch, record, none).rows != with_record).any()
