"""The recovery benchmark, small, on the real stack; and the crowd that it streams."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from deploy.local.stack import LocalStack
from flagger.settings import Settings
from loadtest.bench_recovery import RecoveryPlan, bench_recovery
from loadtest.crowd import Crowd


def test_the_crowd_begins_with_one_transaction_of_each_customer() -> None:
    crowd = Crowd(customers=120_000, terminals=700, seed=3)
    first = pa.Table.from_batches(crowd.first())
    assert first.num_rows == 120_000
    assert pc.count_distinct(first["customer_id"]).as_py() == 120_000
    assert pc.count_distinct(first["terminal_id"]).as_py() == 700
    steady = pa.Table.from_batches(itertools.islice(crowd.steady(50, lambda: True), 3))
    assert steady.num_rows == 150
    both = pa.concat_tables([first, steady])
    assert pc.count_distinct(both["transaction_id"]).as_py() == both.num_rows
    times_ms = both["event_time"].cast(pa.int64()).to_numpy()
    assert (np.diff(times_ms) >= 0).all()
    assert times_ms[-1] - times_ms[120_000] == pytest.approx(3_000, abs=21)


def test_the_same_seed_gives_the_same_crowd() -> None:
    sizes = {"customers": 1_000, "terminals": 100}
    batches = [next(Crowd(**sizes, seed=seed).first()) for seed in (1, 1, 2)]
    assert batches[0].equals(batches[1])
    assert not batches[0].equals(batches[2])


def test_only_the_size_that_the_id_names_has_the_permanent_id() -> None:
    assert RecoveryPlan().scenario == "recovery-1m"
    assert RecoveryPlan(customers=2_000).scenario == "recovery-2000"


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_a_small_run_measures_a_real_restart(
    stack: LocalStack, servers: Settings, tmp_path: Path
) -> None:
    plan = RecoveryPlan(customers=3_000, terminals=200, rate_per_s=400, settle_s=1.5)
    result = bench_recovery(
        plan,
        stack.model_repository,
        tmp_path,
        repeats=1,
        on_step=lambda _: None,
        servers=servers,
    )
    first_s = result.median("restart to first new decision")
    assert 0.2 < first_s <= result.median("restart to backlog gone") < 60
    # Read again is what came since the last flush, not what filled the state.
    assert result.median("messages read again") < plan.customers
    log = (tmp_path / "stream.log").read_text()
    assert log.count("stop with Ctrl-C") == 2, "the killed streamer and its successor"
