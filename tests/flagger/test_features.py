"""The engine against plain formulas, and online rows against offline rows bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagger.errors import ConfigurationError, ContractMismatchError
from flagger.features import (
    ALREADY_APPLIED,
    CATEGORY_FIELDS,
    DUPLICATE,
    FEATURE_NAMES,
    LATE,
    FeatureContract,
    FeatureEngine,
    LabelBatch,
    LogPositions,
    TransactionBatch,
)
from flagger.features.hashing import key_of
from flagger.state.records import CUSTOMER, DAY_MS, HOUR_MS, NEW_BUCKET, TERMINAL_BUCKET_MS

START_MS = 1_700_006_400_000  # 2023-11-15T00:00:00Z, a day's and a half day's start
VOCABULARIES = {name: (f"{name}-a", f"{name}-b") for name in CATEGORY_FIELDS}
CONTRACT = FeatureContract(VOCABULARIES)
MIX = 0x9E3779B97F4A7C15


def batch_of(
    rows: list[tuple[int, int, int, int, float]], categories: list[list[int]] | None = None
) -> TransactionBatch:
    """Make a batch of (transaction, customer, terminal, event_time_ms, amount)."""
    columns = list(zip(*rows, strict=True))

    def keys(values: tuple[float, ...]) -> npt.NDArray[np.uint64]:
        return np.array([(int(v) + 1) * MIX % 2**64 for v in values], dtype=np.uint64)

    return TransactionBatch(
        transaction_key=keys(columns[0]),
        customer_key=keys(columns[1]),
        terminal_key=keys(columns[2]),
        event_time_ms=np.array(columns[3], dtype=np.int64),
        amount=np.array(columns[4], dtype=np.float64),
        category_keys=np.array(categories or [[0] * 4] * len(rows), dtype=np.uint64),
    )


def column(rows: npt.NDArray[np.float32], name: str) -> list[float]:
    return [float(v) for v in rows[:, FEATURE_NAMES.index(name)]]


def test_window_of_one_hour_ends_with_the_bucket_of_five_minutes() -> None:
    minute = 60_000
    rows = [(i, 0, 0, START_MS + m * minute, 10.0) for i, m in enumerate((0, 4, 55, 60, 64))]
    result = FeatureEngine(CONTRACT).process(batch_of(rows))
    # At minute 60 the window begins with minute 5: the first two have left it.
    assert column(result.rows, "customer_count_1h") == [0, 1, 2, 1, 2]
    assert column(result.rows, "customer_amount_sum_1h") == [0, 10, 20, 10, 20]


def test_amount_in_context_of_history() -> None:
    amounts = [10.0, 20.0, 30.0, 200.0]
    rows = [(i, 0, 0, START_MS + i * HOUR_MS, a) for i, a in enumerate(amounts)]
    result = FeatureEngine(CONTRACT).process(batch_of(rows)).rows
    assert column(result, "customer_amount_ratio_to_mean_7d")[3] == pytest.approx(10.0)
    assert column(result, "customer_amount_ratio_to_max_30d")[3] == pytest.approx(200 / 30)
    assert column(result, "customer_amount_zscore")[3] == pytest.approx(18.0)
    assert column(result, "customer_seconds_since_last")[3] == 3600.0
    assert np.isnan(column(result, "customer_amount_ratio_to_mean_7d")[0])


def test_profile_is_history_older_than_two_weeks() -> None:
    days = (0, 1, 20, 70)
    rows = [(i, 0, 0, START_MS + d * DAY_MS, 10.0 * (i + 1)) for i, d in enumerate(days)]
    result = FeatureEngine(CONTRACT).process(batch_of(rows)).rows
    ratios = column(result, "customer_amount_ratio_to_mean_profile")
    assert np.isnan(ratios[1])
    assert ratios[2] == pytest.approx(30 / 15)  # days 0 and 1, still in the ring
    assert ratios[3] == pytest.approx(40 / 20)  # all three, gone from the ring


def test_terminal_risk_is_known_only_after_the_label_delay() -> None:
    engine = FeatureEngine(CONTRACT)
    first = batch_of([(0, 0, 7, START_MS, 10.0)])
    engine.process(first)
    engine.apply_labels(
        LabelBatch(
            first.transaction_key, first.terminal_key, first.event_time_ms, np.ones(1, np.uint8)
        )
    )
    half_day = 12 * HOUR_MS
    before = engine.process(batch_of([(1, 1, 7, START_MS + 7 * DAY_MS + half_day - 1, 10.0)]))
    after = engine.process(batch_of([(2, 2, 7, START_MS + 7 * DAY_MS + half_day, 10.0)]))
    assert column(before.rows, "terminal_fraud_share_7d")[0] != 1.0
    assert column(after.rows, "terminal_fraud_share_7d")[0] == 1.0
    assert column(after.rows, "terminal_fraud_count_1d")[0] == 1.0


def test_repeated_label_counts_once_and_a_correction_takes_it_back() -> None:
    engine = FeatureEngine(CONTRACT)
    tx = batch_of([(0, 0, 7, START_MS, 10.0)])
    engine.process(tx)
    for outcome, expected in ((1, 1), (1, 1), (0, 0), (1, 1)):
        labels = LabelBatch(
            tx.transaction_key, tx.terminal_key, tx.event_time_ms, np.array([outcome], np.uint8)
        )
        engine.apply_labels(labels)
        record = engine.terminals.get(int(tx.terminal_key[0]))
        assert record is not None
        assert int(record["frauds"].sum()) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_after_any_corrections_the_record_is_that_of_the_last_outcomes(
    told: list[tuple[int, bool]],
) -> None:
    """Ten transactions, some in one half day; each may be labelled again and again."""
    engine = FeatureEngine(CONTRACT)
    times = [START_MS + n // 2 * 30 * HOUR_MS for n in range(10)]
    tx = batch_of([(n, n, 7, time_ms, 10.0) for n, time_ms in enumerate(times)])
    engine.process(tx)
    for number, is_fraud in told:
        one = slice(number, number + 1)
        outcome = np.array([is_fraud], np.uint8)
        engine.apply_labels(
            LabelBatch(
                tx.transaction_key[one], tx.terminal_key[one], tx.event_time_ms[one], outcome
            )
        )
    frauds = [times[n] // TERMINAL_BUCKET_MS for n, is_fraud in dict(told).items() if is_fraud]
    record = engine.terminals.get(int(tx.terminal_key[0]))
    assert record is not None
    assert int(record["frauds"].sum()) == len(frauds)
    assert record["first_fraud_bucket"].item() == min(frauds, default=NEW_BUCKET)


def test_categories_unknown_to_the_model_are_code_zero() -> None:
    known = [key_of(f"{name}-b") for name in CATEGORY_FIELDS]
    rows = [(i, 0, 0, START_MS + i, 1.0) for i in range(3)]
    batch = batch_of(rows, [known, [0] * 4, [key_of("never seen")] * 4])
    result = FeatureEngine(CONTRACT).process(batch).rows
    for name in CATEGORY_FIELDS:
        assert column(result, f"{name}_code") == [2.0, 0.0, 0.0]
    assert column(result, "customer_country_is_new")[1:] == [1.0, 1.0]


def test_duplicate_moves_nothing_and_late_is_flagged() -> None:
    engine = FeatureEngine(CONTRACT)
    rows = [
        (0, 0, 0, START_MS + HOUR_MS, 5.0),
        (0, 0, 0, START_MS + HOUR_MS, 5.0),
        (1, 0, 0, START_MS, 5.0),
    ]
    result = engine.process(batch_of(rows))
    assert list(result.flags) == [0, DUPLICATE, LATE]
    assert np.isnan(result.rows[1]).all()
    assert int(engine.customers.records["count"][0]) == 2


def test_an_offset_that_the_record_includes_is_not_applied_again() -> None:
    engine = FeatureEngine(CONTRACT)
    batch = batch_of([(0, 0, 0, START_MS, 5.0), (1, 0, 0, START_MS + 1, 5.0)])
    positions = LogPositions(np.zeros(2, np.int16), np.array([5, 6], np.int64))
    engine.process(batch, positions)
    before = engine.customers.records.tobytes()
    again = engine.process(batch, positions)
    assert list(again.flags) == [ALREADY_APPLIED] * 2
    assert engine.customers.records.tobytes() == before


events = st.tuples(
    st.integers(0, 400),  # transaction: repeats happen
    st.integers(0, 6),
    st.integers(0, 4),
    st.one_of(  # steps in time: equal, forward by seconds to months, and backwards
        st.sampled_from([0, 0, 1000, 60_000, -60_000, HOUR_MS, -3 * HOUR_MS, DAY_MS, 45 * DAY_MS]),
        st.integers(-2 * DAY_MS, 3 * DAY_MS),
    ),
    st.floats(0.01, 1e6, allow_nan=False),
)


@settings(max_examples=150, deadline=None, print_blob=True)
@given(
    st.lists(events, min_size=1, max_size=120),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_online_rows_equal_offline_rows_bit_for_bit(
    steps: list[tuple[int, int, int, int, float]], sizes: list[int]
) -> None:
    now = START_MS
    rows = []
    for transaction, customer, terminal, step, amount in steps:
        now += step
        rows.append((transaction, customer, terminal, max(now, 0), amount))
    batch = batch_of(rows)
    offline = FeatureEngine(CONTRACT)
    expected = offline.process(batch)
    online = FeatureEngine(CONTRACT)
    got, flags, start, turn = [], [], 0, 0
    while start < len(rows):
        size = sizes[turn % len(sizes)]
        part = online.process(batch.take(slice(start, start + size)))
        got.append(part.rows)
        flags.append(part.flags)
        start, turn = start + size, turn + 1
    assert np.concatenate(got).tobytes() == expected.rows.tobytes()
    assert np.concatenate(flags).tobytes() == expected.flags.tobytes()
    n = len(offline.customers)
    assert online.customers.records[:n].tobytes() == offline.customers.records[:n].tobytes()


def test_customer_record_is_at_most_one_kibibyte() -> None:
    assert CUSTOMER.itemsize <= 1024


def test_contract_round_trip_and_mismatch() -> None:
    contract = FeatureContract.from_json(CONTRACT.to_json())
    assert contract == CONTRACT
    contract.require_current("here")
    with pytest.raises(ContractMismatchError, match=r"0000.*Train and export"):
        FeatureContract(VOCABULARIES, hash="0000").require_current("model_repository")
    with pytest.raises(ConfigurationError, match="Not a feature contract"):
        FeatureContract.from_json("[]")
