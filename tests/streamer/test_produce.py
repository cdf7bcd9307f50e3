"""What the producer sends is what the streamer reads, text by text."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa

from flagger.wire.messages import parse_transaction
from streamer.produce import encode_transactions
from train.sources import SCHEMA


def test_rows_become_messages_that_read_back_the_same() -> None:
    moment = datetime(2026, 1, 31, 12, 0, 0, 123_000, tzinfo=UTC)
    rows = [
        {"transaction_id": 'a"b\\c\n', "customer_id": "ü", "amount": 0.1, "channel": "pos"},
        {"transaction_id": "t2", "customer_id": "c2", "amount": 0.0, "country": "GB"},
        {"transaction_id": "t3", "customer_id": "c3", "amount": 123456.78},
    ]
    whole = [{"event_time": moment, "terminal_id": "m1", "is_fraud": False} | r for r in rows]
    batch = pa.RecordBatch.from_pylist(whole, schema=SCHEMA)
    messages = encode_transactions(batch)
    assert len(messages) == len(rows)
    for raw, row in zip(messages, whole, strict=True):
        got = parse_transaction(raw, now_ms=1_800_000_000_000)
        for name in ("transaction_id", "customer_id", "terminal_id", "amount"):
            assert getattr(got, name) == row[name]
        for name in ("channel", "country", "currency", "merchant_category"):
            assert getattr(got, name) == row.get(name)
        assert got.event_time == int(moment.timestamp() * 1000)
