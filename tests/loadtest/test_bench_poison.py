"""The poison benchmark: its bad messages are bad, and a small run on the real stack counts them."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from flagger.errors import BadMessageError
from flagger.settings import Settings
from flagger.wire.messages import parse_transaction
from loadtest.bench_poison import KINDS, ONE_IN, bench_poison, spoil
from streamer.produce import encode_transactions
from train.simulate import SimulationConfig, simulate

NOW_MS = 1_800_000_000_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    size = SimulationConfig(customers=500, terminals=200, days=10, start=date(2026, 1, 1), seed=8)
    return pa.Table.from_batches(simulate(size))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("broken JSON", "not valid JSON"),
        ("missing field", "amount"),
        ("wrong type", "amount: Expected `float`, got `str`"),
        ("too long", "the limit is 65,536"),
    ],
)
def test_a_spoilt_message_is_bad_for_its_own_reason(
    table: pa.Table, kind: str, reason: str
) -> None:
    good = encode_transactions(table.to_batches()[0].slice(0, 1))[0]
    parse_transaction(good, NOW_MS)
    assert kind in KINDS
    with pytest.raises(BadMessageError, match=reason):
        parse_transaction(spoil(good, kind), NOW_MS)


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_a_small_run_counts_every_bad_message(
    stack: LocalStack, servers: Settings, table: pa.Table, tmp_path: Path
) -> None:
    result = bench_poison(
        table,
        stack.model_repository,
        tmp_path,
        repeats=1,
        on_step=lambda _: None,
        servers=servers,
    )
    assert result.scenario == "stream-poison"
    full, rest = divmod(table.num_rows, ONE_IN - 1)
    assert full <= result.median("dead letters") <= full + (rest > 0)
    assert result.median("with / without") == pytest.approx(
        result.median("with bad messages") / result.median("without bad messages")
    )
