"""Compiled decisions are what the message type reads, field by field."""

from __future__ import annotations

import json

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flagger.wire.decode import decode_transactions
from flagger.wire.encode import DecisionText, encode_approvals
from flagger.wire.messages import Decision

NOW_MS = 1_767_225_600_000
CONSTANTS = DecisionText(model="fraud_fil", model_version="3", policy_version="2")

rows = st.tuples(
    st.text(min_size=1, max_size=20),
    st.text(min_size=1, max_size=20),
    st.one_of(st.floats(0, 1e6), st.integers(0, 10**9)),
    st.floats(0, 1, width=32),
    st.integers(0, 2**64 - 1),
    st.floats(0, 1e8),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, min_size=1, max_size=8))
def test_compiled_decisions_read_back_as_written(
    values: list[tuple[str, str, float, float, int, float]],
) -> None:
    raw = [
        json.dumps(
            {
                "transaction_id": transaction,
                "customer_id": customer,
                "terminal_id": "m1",
                "event_time": NOW_MS - i,
                "amount": amount,
            }
        ).encode(errors="surrogatepass")
        for i, (transaction, customer, amount, *_) in enumerate(values)
    ]
    decoded = decode_transactions(raw, NOW_MS)
    assert not decoded.bad
    written = encode_approvals(
        CONSTANTS,
        decoded.text,
        decoded.spans,
        np.array([v[3] for v in values], dtype=np.float32),
        np.array([v[4] for v in values], dtype=np.uint64),
        np.array([v[5] for v in values]),
    )
    for i, (text, value) in enumerate(zip(written, values, strict=True)):
        decision = msgspec.json.decode(text, type=Decision)
        transaction, customer, amount, score, key, latency_ms = value
        assert (decision.transaction_id, decision.customer_id) == (transaction, customer)
        assert (decision.amount, decision.event_time) == (amount, NOW_MS - i)
        assert (decision.decision, decision.decision_source) == ("approve", "model")
        assert (decision.model, decision.model_version) == ("fraud_fil", "3")
        assert decision.policy_version == "2"
        assert decision.score is not None
        assert abs(decision.score - score) <= 5.1e-10
        assert decision.feature_hash == f"{key:016x}"
        assert abs(decision.latency_ms - latency_ms) <= 0.051
