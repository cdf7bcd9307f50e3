"""From raw messages to columns, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.errors import BadMessageError
from flagger.features.batch import CATEGORY_FIELDS, TransactionBatch
from flagger.features.hashing import key_of
from flagger.wire.limits import MAX_MESSAGE_BYTES, MAX_TIME_AHEAD_MS, MIN_EVENT_TIME_MS
from flagger.wire.messages import Decision, Transaction, parse_transaction
from flagger.wire.scan import SPANS, scan_transactions

__all__ = ["DecodedBatch", "decode_transactions", "encode_spans", "transaction_keys"]


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """The good messages of a batch as columns, and the bad ones with their reasons.

    Attributes:
        transactions: The good ones, n rows in log order.
        source: Place of each in the sequence that was decoded, intp [n].
        text: JSON text that `spans` point into, uint8.
        spans: Start and end in `text` of transaction id, customer id, terminal id (without
            quotes, escaped as JSON), amount and event time, int64 [n, 10].
        decided: Decisions that came with the message (from the gateway), by row.
        bad: Place in the sequence and error of each bad message.
    """

    transactions: TransactionBatch
    source: npt.NDArray[np.intp]
    text: npt.NDArray[np.uint8]
    spans: npt.NDArray[np.int64]
    decided: dict[int, Decision]
    bad: list[tuple[int, BadMessageError]]

    def __len__(self) -> int:
        return len(self.source)


def encode_spans(transaction: Transaction) -> list[bytes]:
    """Return the JSON text of the values that decisions repeat, in the order of the spans."""
    ids = (transaction.transaction_id, transaction.customer_id, transaction.terminal_id)
    return [
        *(msgspec.json.encode(value)[1:-1] for value in ids),
        msgspec.json.encode(transaction.amount),
        str(transaction.event_time_ms).encode(),
    ]


def transaction_keys(transaction: Transaction) -> list[int]:
    """Return the keys of transaction, customer and terminal id, then of the four categories."""
    ids = (transaction.transaction_id, transaction.customer_id, transaction.terminal_id)
    categories = (getattr(transaction, field) for field in CATEGORY_FIELDS)
    return [key_of(value) for value in ids] + [
        key_of(value) if value else 0 for value in categories
    ]


def decode_transactions(
    messages: Sequence[bytes], now_ms: int, written_ms: npt.NDArray[np.int64] | None = None
) -> DecodedBatch:
    """Read a batch of messages; nothing is lost: each is a row of the result or in `bad`.

    Args:
        messages: The raw JSON messages in log order.
        now_ms: The current time, epoch milliseconds; event times far ahead of it are refused.
        written_ms: When each was written to the log, int64 [n]; event times far ahead of that are
            refused too, so that whoever reads the log later refuses the same. Times that cannot
            be right (before 2000) do not count.
    """
    n = len(messages)
    limits_ms = np.full(n, now_ms, dtype=np.int64)
    if written_ms is not None:
        known = written_ms >= MIN_EVENT_TIME_MS
        limits_ms[known] = np.minimum(written_ms[known], now_ms)
    starts = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, messages), dtype=np.int64, count=n), out=starts[1:])
    joined = b"".join(messages)
    text = np.frombuffer(joined, dtype=np.uint8)
    spans = np.zeros((n, 2 * SPANS), dtype=np.int64)
    keys = np.zeros((n, 7), dtype=np.uint64)
    times_ms = np.zeros(n, dtype=np.int64)
    amounts = np.zeros(n, dtype=np.float64)
    plain = np.zeros(n, dtype=np.bool_)
    time_range_ms = (MIN_EVENT_TIME_MS, now_ms + MAX_TIME_AHEAD_MS)
    scan_transactions(text, starts, time_range_ms, spans, keys, times_ms, amounts, plain)
    plain &= np.diff(starts) <= MAX_MESSAGE_BYTES
    plain &= times_ms <= limits_ms + MAX_TIME_AHEAD_MS

    decided: dict[int, Decision] = {}
    bad: list[tuple[int, BadMessageError]] = []
    extra: list[bytes] = []
    position = len(joined)
    for place in np.flatnonzero(~plain):
        i = int(place)
        try:
            transaction = parse_transaction(messages[i], int(limits_ms[i]))
        except BadMessageError as error:
            bad.append((i, error))
            continue
        plain[i] = True
        keys[i] = transaction_keys(transaction)
        times_ms[i] = transaction.event_time_ms
        amounts[i] = transaction.amount
        for k, value in enumerate(encode_spans(transaction)):
            extra.append(value)
            spans[i, 2 * k : 2 * k + 2] = position, position + len(value)
            position += len(value)
        if transaction.decision is not None:
            decided[i] = transaction.decision
    if extra:
        text = np.frombuffer(joined + b"".join(extra), dtype=np.uint8)
    source = np.flatnonzero(plain)
    if bad or decided:
        row_of = {int(place): row for row, place in enumerate(source)} if decided else {}
        decided = {row_of[i]: decision for i, decision in decided.items()}
    keys = keys[source] if bad else keys
    return DecodedBatch(
        transactions=TransactionBatch(
            transaction_key=np.ascontiguousarray(keys[:, 0]),
            customer_key=np.ascontiguousarray(keys[:, 1]),
            terminal_key=np.ascontiguousarray(keys[:, 2]),
            event_time_ms=times_ms[source] if bad else times_ms,
            amount=amounts[source] if bad else amounts,
            category_keys=np.ascontiguousarray(keys[:, 3:]),
        ),
        source=source,
        text=text,
        spans=spans[source] if bad else spans,
        decided=decided,
        bad=bad,
    )
