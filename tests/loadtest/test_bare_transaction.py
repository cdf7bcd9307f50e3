"""The floor under the latencies, on the real broker."""

from __future__ import annotations

import pytest

from flagger.settings import Settings
from loadtest.bare_transaction import measure_bare_transactions

pytestmark = [pytest.mark.stack]


def test_each_message_is_read_after_its_transaction(servers: Settings) -> None:
    bare = measure_bare_transactions(servers, count=10)
    assert len(bare.commit_ms) == 10
    assert (bare.commit_ms > 0).all()
    assert len(bare.read_ms) % 10 == 0
    assert len(bare.read_ms) > 0
    # A read-committed reader sees nothing before the commit; timestamps are whole milliseconds.
    assert bare.read_ms.max() >= bare.commit_ms.min() - 1
    assert (bare.read_ms >= 0).all()
