"""From a batch of transactions to the model's input rows: the loop over the kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel
from flagger.features import customer, terminal
from flagger.features.program import Op
from flagger.state.records import DAY_MS, HOUR_MS, NEW_BUCKET, TERMINAL_BUCKET_MS

__all__ = ["ALREADY_APPLIED", "DUPLICATE", "LATE", "MOVED", "score_rows"]

DUPLICATE = 1
"""The id was seen before: no second decision, the state is not moved."""
LATE = 2
"""Older than the newest transaction of its customer."""
ALREADY_APPLIED = 4
"""The record already includes this offset (replay after a restart): the state is not moved."""
MOVED = 8
"""Its customer's transaction before this one stood in another partition."""

_AMOUNT = int(Op.AMOUNT)
_HOUR_OF_DAY = int(Op.HOUR_OF_DAY)
_IS_NIGHT = int(Op.IS_NIGHT)
_IS_WEEKEND = int(Op.IS_WEEKEND)
_CODE = int(Op.CODE)
_COUNT = int(Op.COUNT)
_SUM = int(Op.SUM)
_MEAN = int(Op.MEAN)
_MAX = int(Op.MAX)
_RATIO_TO_MEAN = int(Op.RATIO_TO_MEAN)
_RATIO_TO_MAX = int(Op.RATIO_TO_MAX)
_MAX_TO_PROFILE_MAX = int(Op.MAX_TO_PROFILE_MAX)
_MEAN_TO_PROFILE_MEAN = int(Op.MEAN_TO_PROFILE_MEAN)
_ZSCORE = int(Op.ZSCORE)
_RATE_TO_30D = int(Op.RATE_TO_30D)
_SECONDS_SINCE_LAST = int(Op.SECONDS_SINCE_LAST)
_DAYS_SINCE_FIRST = int(Op.DAYS_SINCE_FIRST)
_COUNT_ALL = int(Op.COUNT_ALL)
_HOUR_SHARE = int(Op.HOUR_SHARE)
_IS_NEW = int(Op.IS_NEW)
_VISITS = int(Op.VISITS)
_TERMINAL_COUNT = int(Op.TERMINAL_COUNT)
_TERMINAL_FRAUD_COUNT = int(Op.TERMINAL_FRAUD_COUNT)
_TERMINAL_FRAUD_SHARE = int(Op.TERMINAL_FRAUD_SHARE)
_TERMINAL_DAYS_SINCE_FIRST_FRAUD = int(Op.TERMINAL_DAYS_SINCE_FIRST_FRAUD)
_TERMINAL_DAYS_SINCE_LAST_FRAUD = int(Op.TERMINAL_DAYS_SINCE_LAST_FRAUD)

_NIGHT_ENDS_HOUR = 6
_PROFILE = 5
_ALL_TERMINAL_VALUE = 4
_DAYS_1H = 1.0 / 24.0


@kernel
def _ratio(a: float, b: float) -> float:
    return a / b if b > 0.0 else np.nan


@kernel
def _category_code(
    keys: npt.NDArray[np.uint64],
    codes: npt.NDArray[np.float32],
    start: int,
    end: int,
    key: np.uint64,
) -> float:
    """Return the code of a category by binary search; 0 for absent and unknown ones."""
    while start < end:
        middle = (start + end) // 2
        if keys[middle] < key:
            start = middle + 1
        elif keys[middle] > key:
            end = middle
        else:
            return float(codes[middle])
    return 0.0


@kernel
def _transaction_value(op: int, event_time_ms: int, amount: float) -> float:
    if op == _AMOUNT:
        return amount
    if op == _HOUR_OF_DAY:
        return (event_time_ms % DAY_MS) / HOUR_MS
    if op == _IS_NIGHT:
        return 1.0 if (event_time_ms % DAY_MS) // HOUR_MS < _NIGHT_ENDS_HOUR else 0.0
    # Day 0 of the epoch was a Thursday: day 2 and 3 of each seven are the weekend.
    day = (event_time_ms // DAY_MS) % 7
    return 1.0 if day == 2 or day == 3 else 0.0


@kernel
def _window_value(
    op: int,
    window: int,
    amount: float,
    counts: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
    maxima: npt.NDArray[np.float64],
) -> float:
    if op == _COUNT:
        return counts[window]
    if op == _SUM:
        return sums[window]
    mean = _ratio(sums[window], counts[window])
    if op == _MEAN:
        return mean
    if op == _MAX:
        return maxima[window] if counts[window] > 0 else np.nan
    if op == _RATIO_TO_MEAN:
        return _ratio(amount, mean)
    if op == _RATIO_TO_MAX:
        return _ratio(amount, maxima[window])
    if op == _MAX_TO_PROFILE_MAX:
        return _ratio(maxima[window], maxima[_PROFILE])
    if op == _MEAN_TO_PROFILE_MEAN:
        return _ratio(mean, _ratio(sums[_PROFILE], counts[_PROFILE]))
    days = _DAYS_1H if window == 0 else 1.0  # RATE_TO_30D
    return _ratio(counts[window] / days, counts[4] / 30.0)


@kernel
def _history_value(
    op: int,
    argument: int,
    r: Any,
    event_time_ms: int,
    amount: float,
    terminal_key: np.uint64,
    category_keys: npt.NDArray[np.uint64],
) -> float:
    if op == _COUNT_ALL:
        return float(r.count)
    if r.count == 0:
        return np.nan
    if op == _ZSCORE:
        if r.count < 2:
            return np.nan
        spread = np.sqrt(r.amount_m2 / (r.count - 1))
        return (amount - r.amount_mean) / spread if spread > 0.0 else np.nan
    if op == _SECONDS_SINCE_LAST:
        return max(event_time_ms - r.last_event_ms, 0) / 1000.0
    if op == _DAYS_SINCE_FIRST:
        return max(event_time_ms - r.first_event_ms, 0) / DAY_MS
    if op == _HOUR_SHARE:
        return r.three_hour_count[(event_time_ms % DAY_MS) // (3 * HOUR_MS)] / r.count
    if op == _VISITS or argument == _ALL_TERMINAL_VALUE:
        seen = customer.visits(r, terminal_key)
        if op == _VISITS:
            return float(seen)
        return 0.0 if seen > 0 else 1.0
    return 0.0 if customer.saw_value(r, argument, category_keys[argument]) else 1.0


@kernel
def _terminal_value(
    op: int,
    window: int,
    r: Any,
    last_bucket: int,
    newest_fraud: int,
    counts: npt.NDArray[np.float64],
    frauds: npt.NDArray[np.float64],
) -> float:
    if op == _TERMINAL_COUNT:
        return counts[window]
    if op == _TERMINAL_FRAUD_COUNT:
        return frauds[window]
    if op == _TERMINAL_FRAUD_SHARE:
        return _ratio(frauds[window], counts[window])
    bucket = newest_fraud
    if op == _TERMINAL_DAYS_SINCE_FIRST_FRAUD:
        bucket = r.first_fraud_bucket if r.first_fraud_bucket <= last_bucket else NEW_BUCKET
    if bucket == NEW_BUCKET:
        return np.nan
    return (last_bucket - bucket) * (TERMINAL_BUCKET_MS / DAY_MS)


@kernel
def _note_place(r: Any, partition: int, offset: int) -> int:
    """Note in a record where its transaction stands; return ALREADY_APPLIED, MOVED or 0."""
    if r.partition == partition and offset < r.applied_offset:
        return ALREADY_APPLIED
    is_moved = r.partition >= 0 and r.partition != partition
    r.partition = partition
    r.applied_offset = offset + 1
    return MOVED if is_moved else 0


@kernel
def score_rows(
    ops: npt.NDArray[np.int32],
    arguments: npt.NDArray[np.int32],
    vocabulary: tuple[Any, Any, Any],
    label_delay_ms: int,
    batch: tuple[Any, Any, Any, Any, Any, Any],
    customers: tuple[Any, Any, Any],
    terminals: tuple[Any, Any, Any],
    log: tuple[Any, Any],
    count_at_terminals: bool,
    rows: npt.NDArray[np.float32],
    flags: npt.NDArray[np.uint8],
) -> None:
    """Compute the rows of a batch and move the state, one transaction after the other.

    Args:
        ops: `Program.ops`, int32 [F].
        arguments: `Program.arguments`, int32 [F].
        vocabulary: Keys, codes and starts of `Program`.
        label_delay_ms: `Program.label_delay_ms`.
        batch: The columns of `TransactionBatch`, n rows.
        customers: Records, dirty flags, and the record's row per transaction, int32 [n].
        terminals: The same for terminals.
        log: Partition (int16 [n], -1: not from a log) and offset (int64 [n]) of each.
        count_at_terminals: False where the terminals' counts come from the activity log.
        rows: Output, float32 [n, F]; NaN throughout where no decision is due.
        flags: Output, uint8 [n], of DUPLICATE, LATE, ALREADY_APPLIED and MOVED.
    """
    transaction_keys, _customer_keys, terminal_keys, times_ms, amounts, category_keys = batch
    vocabulary_keys, vocabulary_codes, vocabulary_starts = vocabulary
    partitions, offsets = log
    counts = np.zeros(6)
    sums = np.zeros(6)
    maxima = np.zeros(6)
    terminal_counts = np.zeros(3)
    terminal_frauds = np.zeros(3)
    for i in range(times_ms.shape[0]):
        r = customers[0][customers[2][i]]
        flags[i] = 0
        if partitions[i] >= 0:
            flags[i] = _note_place(r, partitions[i], offsets[i])
            if flags[i] == ALREADY_APPLIED:
                rows[i, :] = np.nan
                continue
            customers[1][customers[2][i]] = 1
        if r.count > 0 and customer.is_repeated(r, transaction_keys[i]):
            flags[i] |= DUPLICATE
            rows[i, :] = np.nan
            continue
        time_ms = times_ms[i]
        if r.count > 0 and time_ms < r.last_event_ms:
            flags[i] |= LATE
        customer.advance(r, time_ms)
        customer.sum_windows(r, time_ms, counts, sums, maxima)
        t = terminals[0][terminals[2][i]]
        last_bucket = terminal.last_known_bucket(time_ms, label_delay_ms)
        newest_fraud = terminal.sum_terminal_windows(
            t, last_bucket, terminal_counts, terminal_frauds
        )
        for f in range(ops.shape[0]):
            op = ops[f]
            argument = arguments[f]
            if op < _CODE:
                value = _transaction_value(op, time_ms, amounts[i])
            elif op == _CODE:
                value = _category_code(
                    vocabulary_keys,
                    vocabulary_codes,
                    vocabulary_starts[argument],
                    vocabulary_starts[argument + 1],
                    category_keys[i, argument],
                )
            elif op <= _MEAN_TO_PROFILE_MEAN or op == _RATE_TO_30D:
                value = _window_value(op, argument, amounts[i], counts, sums, maxima)
            elif op < _TERMINAL_COUNT:
                value = _history_value(
                    op, argument, r, time_ms, amounts[i], terminal_keys[i], category_keys[i]
                )
            else:
                value = _terminal_value(
                    op, argument, t, last_bucket, newest_fraud, terminal_counts, terminal_frauds
                )
            rows[i, f] = value
        customer.add_transaction(
            r, transaction_keys[i], terminal_keys[i], time_ms, amounts[i], category_keys[i]
        )
        customers[1][customers[2][i]] = 1
        if count_at_terminals:
            terminal.add_count(t, time_ms // TERMINAL_BUCKET_MS, 1)
            terminals[1][terminals[2][i]] = 1
