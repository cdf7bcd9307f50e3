"""Compiles the feature kernels while an image is built: `python -m deploy.precompile`.

They land in the cache folder below XDG_CACHE_HOME. numba keeps code per processor model: on another
one than the builder's a container compiles again, which only costs time at its start.
"""

from __future__ import annotations

import time

import numpy as np

from flagger.compiled import cache_home
from flagger.features import (
    CATEGORY_FIELDS,
    ActivityBatch,
    FeatureContract,
    FeatureEngine,
    LabelBatch,
    LogPositions,
)
from flagger.state.store import decode_records
from flagger.wire.decode import decode_transactions
from flagger.wire.encode import DecisionText, encode_approvals

__all__ = ["precompile"]

_MESSAGE = (
    b'{"transaction_id":"t","customer_id":"c","terminal_id":"m","event_time":%d,"amount":1.5,'
    b'"currency":"EUR"}'
)


def precompile() -> None:
    """Run each kernel once, with the argument types of the streamer and of the gateway."""
    now_ms = time.time_ns() // 1_000_000
    decoded = decode_transactions([_MESSAGE % now_ms], now_ms)
    batch = decoded.transactions
    engine = FeatureEngine(FeatureContract({name: ("EUR",) for name in CATEGORY_FIELDS}))
    rows = engine.process(batch, LogPositions.none(1), count_at_terminals=False)
    encode_approvals(
        DecisionText(model="m", model_version="1", policy_version="1"),
        decoded.text,
        decoded.spans,
        np.zeros(1, dtype=np.float32),
        rows.hashes(),
        np.zeros(1),
    )
    key = batch.terminal_key
    one_bucket = np.ones(1, dtype=np.int32)
    engine.apply_activity(ActivityBatch(key, one_bucket, one_bucket.astype(np.uint32)), 0)
    engine.apply_labels(
        LabelBatch(batch.transaction_key, key, batch.event_time_ms, np.ones(1, dtype=np.uint8))
    )
    # Records from the store are read-only arrays, which have kernels of their own.
    customers = decode_records("customer", [r.tobytes() for r in engine.customers.take_dirty()])
    terminals = decode_records("terminal", [r.tobytes() for r in engine.terminals.take_dirty()])
    engine.process_detached(batch, customers, terminals)
    other = FeatureEngine(engine.contract)
    other.customers.load(customers)
    other.terminals.load(terminals)
    other.customers.missing(batch.customer_key)


if __name__ == "__main__":
    start_s = time.perf_counter()
    precompile()
    print(f"kernels in {cache_home()} after {time.perf_counter() - start_s:.0f} s")  # noqa: T201
