"""Measures what one Valkey server takes of our records: writes per second, and memory for each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import valkey

from flagger.errors import ConfigurationError
from flagger.state.records import CUSTOMER, TERMINAL
from flagger.state.store import MAX_RECORDS_PER_CALL, encode_keys

__all__ = ["ValkeyRate", "measure_valkey"]

_RECORDS = 100_000
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class ValkeyRate:
    """What was measured.

    Attributes:
        writes_per_s: Customer records per second, by MSET from one client: client and server each
            have a core.
        customer_bytes: Memory of a customer's record with its key, bytes.
        terminal_bytes: Memory of a terminal's record with its key, bytes.
    """

    writes_per_s: float
    customer_bytes: float
    terminal_bytes: float


def measure_valkey(url: str) -> ValkeyRate:
    """Fill an empty database with records, and empty it again.

    Raises:
        ConfigurationError: The database is not empty: somebody uses it.
    """
    client: Any = valkey.Valkey.from_url(url)
    if client.dbsize():
        raise ConfigurationError(
            f"{url.rsplit('@', 1)[-1]} is not empty; measure with a database of its own, for "
            f"example number 15 of a server that nobody uses."
        )
    rng = np.random.default_rng(0)
    try:
        before = client.info("memory")["used_memory"]
        keys = encode_keys("customer", rng.integers(1, 1 << 63, _RECORDS).astype(np.uint64))
        value = rng.bytes(CUSTOMER.itemsize)
        rates = []
        for _ in range(_ROUNDS):
            start_s = time.perf_counter()
            for i in range(0, _RECORDS, MAX_RECORDS_PER_CALL):
                client.mset(dict.fromkeys(keys[i : i + MAX_RECORDS_PER_CALL], value))
            rates.append(_RECORDS / (time.perf_counter() - start_s))
        customer = (client.info("memory")["used_memory"] - before) / _RECORDS
        (key,) = encode_keys("terminal", np.ones(1, dtype=np.uint64))
        client.set(key, rng.bytes(TERMINAL.itemsize))
        terminal = client.memory_usage(key)
    finally:
        client.flushdb()
        client.close()
    return ValkeyRate(float(np.median(rates)), float(customer), float(terminal))
