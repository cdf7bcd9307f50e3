"""The simulator: repeatable, ordered, and with everything that it promises."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner

from flagger.errors import ConfigurationError
from train.scenarios import FRAUD_KINDS
from train.simulate import CHANNELS, SimulationConfig, simulate, simulate_days
from train.simulate_cli import simulate as simulate_command
from train.sources import SCHEMA, read_transactions

CONFIG = SimulationConfig(customers=2_000, terminals=1_500, days=30, start=date(2026, 3, 1), seed=3)


@pytest.fixture(scope="module")
def simulated() -> tuple[pa.Table, npt.NDArray[np.int8]]:
    days = list(simulate_days(CONFIG))
    table = pa.Table.from_batches([batch for batch, _ in days])
    return table, np.concatenate([rows.kind for _, rows in days])


Simulated = tuple[pa.Table, npt.NDArray[np.int8]]


def test_same_seed_same_transactions() -> None:
    small = SimulationConfig(customers=50, terminals=30, days=5, seed=1)
    other = SimulationConfig(customers=50, terminals=30, days=5, seed=2)
    first, again, changed = (pa.Table.from_batches(simulate(c)) for c in (small, small, other))
    assert first.equals(again)
    assert not first["amount"].combine_chunks().equals(changed["amount"].combine_chunks())


def test_ordered_in_time_and_inside_the_days(simulated: Simulated) -> None:
    table, _ = simulated
    assert table.schema.equals(SCHEMA)
    times = table["event_time"].cast(pa.int64()).to_numpy()
    assert np.all(np.diff(times) >= 0)
    assert table["event_time"][0].as_py() >= datetime(2026, 3, 1, tzinfo=UTC)
    assert table["event_time"][-1].as_py() < datetime(2026, 3, 31, tzinfo=UTC)
    assert len(pc.unique(table["transaction_id"])) == table.num_rows


def test_every_kind_of_fraud_occurs_and_is_rare(simulated: Simulated) -> None:
    table, kinds = simulated
    counts = np.bincount(kinds, minlength=len(FRAUD_KINDS))
    assert (counts > 0).all(), dict(zip(FRAUD_KINDS, counts, strict=True))
    assert 0.004 < (kinds > 0).mean() < 0.012
    assert table["is_fraud"].to_numpy().tolist() == (kinds > 0).tolist()


def test_compromised_terminals_last_at_most_28_days(simulated: Simulated) -> None:
    table, kinds = simulated
    days = table["event_time"].cast(pa.int64()).to_numpy() // 86_400_000
    terminals = table["terminal_id"].to_numpy()
    bad = kinds == FRAUD_KINDS.index("compromised_terminal")
    spans = [np.ptp(days[bad & (terminals == name)]) for name in set(terminals[bad])]
    assert 7 < max(spans) < 30


def test_card_testing_is_a_burst_of_small_amounts_before_a_large_one(simulated: Simulated) -> None:
    table, kinds = simulated
    chosen = table.filter(pa.array(kinds == FRAUD_KINDS.index("card_testing"))).to_pandas()
    assert chosen["channel"].dropna().isin(["ecom", "moto"]).all()
    chosen["day"] = chosen["event_time"].dt.date
    for _, burst in chosen.groupby(["customer_id", "day"]):
        assert (burst["amount"].to_numpy()[:-1] <= 3).all()
        assert burst["amount"].iloc[-1] > 3
        assert (burst["event_time"].iloc[-1] - burst["event_time"].iloc[0]).total_seconds() < 3600


def test_takeovers_happen_abroad_mostly(simulated: Simulated) -> None:
    table, kinds = simulated
    frame = table.select(["customer_id", "country"]).to_pandas()
    home = frame[kinds == 0].groupby("customer_id")["country"].agg(lambda c: c.mode().iloc[0])
    taken = frame[kinds == FRAUD_KINDS.index("account_takeover")].dropna()
    assert (taken["country"] != taken["customer_id"].map(home)).mean() > 0.8
    genuine = frame[kinds == 0].dropna()
    assert (genuine["country"] != genuine["customer_id"].map(home)).mean() < 0.3


def test_categories_are_standard_and_some_are_absent(simulated: Simulated) -> None:
    table, _ = simulated
    for name, pattern in (
        ("currency", "^[A-Z]{3}$"),
        ("merchant_category", r"^\d{4}$"),
        ("country", "^[A-Z]{2}$"),
    ):
        assert pc.all(pc.match_substring_regex(table[name], pattern)).as_py()
        assert 0.01 < table[name].null_count / table.num_rows < 0.03
    assert set(table["channel"].unique().to_pylist()) == {*CHANNELS, None}


def test_amounts_are_whole_cents(simulated: Simulated) -> None:
    amounts = simulated[0]["amount"].to_numpy()
    assert (amounts == np.round(amounts, 2)).all()
    assert amounts.min() == 0.0  # an account verification
    assert amounts.max() < 1e6


def test_impossible_simulation_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="terminals is 1; the least is 2"):
        SimulationConfig(terminals=1)


def test_least_simulation_runs() -> None:
    config = SimulationConfig(customers=1, terminals=2, days=40)
    assert sum(batch.num_rows for batch in simulate(config)) > 0


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_command_writes_what_simulate_yields(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"made{suffix}"
    arguments = ["--out", str(out), "--customers", "30", "--terminals", "20", "--days", "4"]
    result = CliRunner().invoke(simulate_command, [*arguments, "--seed", "9"])
    assert result.exit_code == 0, result.output
    expected = pa.Table.from_batches(simulate(SimulationConfig(30, 20, 4, seed=9)))
    assert (
        pa.Table.from_batches(read_transactions(out))
        .combine_chunks()
        .equals(expected.combine_chunks())
    )
    assert f"{expected.num_rows:,} transactions" in result.output


def test_command_refuses_other_files(tmp_path: Path) -> None:
    result = CliRunner().invoke(simulate_command, ["--out", str(tmp_path / "made.txt")])
    assert result.exit_code == 2
    assert ".parquet or .csv" in result.output
