"""Search: resumable, deterministic, blind to the test window."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from flagger.errors import ConfigurationError
from flagger.features import FEATURE_NAMES
from train.fit import Hyperparameters, monotone_directions
from train.search import CAREFUL, SearchPeriod, search, search_periods
from train.simulate import SimulationConfig, simulate
from train.split import Windows

BASE = Hyperparameters(max_trees=8, patience_trees=4)
WINDOWS = Windows(date(2026, 1, 8), date(2026, 2, 20), date(2026, 2, 28), date(2026, 3, 6))


@pytest.fixture(scope="module")
def table() -> pa.Table:
    config = SimulationConfig(customers=300, terminals=60, days=65, start=date(2026, 1, 1), seed=2)
    return pa.Table.from_batches(simulate(config)).combine_chunks()


@pytest.fixture(scope="module")
def periods(table: pa.Table) -> list[SearchPeriod]:
    return search_periods(table, WINDOWS, 7, Path("payments.parquet"))


def test_periods_lie_in_the_train_window_and_see_nothing_later(
    table: pa.Table, periods: list[SearchPeriod]
) -> None:
    assert len(periods) == 3
    for period in periods:
        assert period.windows.gap_days == 7
        assert WINDOWS.train_from <= period.windows.train_from
        assert period.windows.test_to <= WINDOWS.train_to
    later = table["event_time"].cast(pa.int64()).to_numpy() >= 1_771_632_000_000  # 21 February
    flipped = pa.array(np.where(later, ~table["is_fraud"].to_numpy(), table["is_fraud"]))
    changed = table.set_column(9, table.schema.field("is_fraud"), flipped.cast(pa.bool_()))
    again = search_periods(changed, WINDOWS, 7, Path("payments.parquet"))
    for before, after in zip(periods, again, strict=True):
        np.testing.assert_array_equal(before.rows, after.rows)
        np.testing.assert_array_equal(before.is_fraud, after.is_fraud)


def test_a_search_goes_on_where_it_ended(periods: list[SearchPeriod], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    seen: list[int] = []
    expected = search(periods, 4, whole, base=BASE, seed=3)
    search(periods, 2, parts, base=BASE, seed=3)
    found = search(
        periods, 4, parts, base=BASE, seed=3, on_trial=lambda done, _best: seen.append(done)
    )
    assert seen == [2, 3, 4]
    assert found == expected
    written = json.loads((parts / "search.json").read_text(encoding="utf-8"))
    assert written["best"] == asdict(found.best)
    first = found.trials[0]["parameters"]  # the defaults are tried, and what wins is no worse
    assert {name: getattr(BASE, name) for name in first} == first
    assert found.trials[1]["parameters"] == first | CAREFUL
    assert max(trial["value"] for trial in found.trials) >= found.trials[0]["value"]
    assert found.best.max_trees == BASE.max_trees
    with pytest.raises(ConfigurationError, match="holds a search over other data"):
        search(periods, 5, parts, base=BASE, seed=4)


def test_monotone_directions_name_amounts_and_known_frauds() -> None:
    rising = {name for name, way in zip(FEATURE_NAMES, monotone_directions(), strict=True) if way}
    assert {"amount", "terminal_fraud_count_7d", "customer_amount_zscore"} <= rising
    assert not {"hour_of_day", "terminal_count_7d", "customer_count_24h"} & rising
