"""The calculator: by hand, by its own laws, and the page that quotes it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import valkey
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from deploy.local.stack import LocalStack
from deploy.scaling import MAX_PARTITIONS, Demand, Figures, limits_of, plan_for
from deploy.scaling_cli import scale
from deploy.valkey_rate import measure_valkey
from flagger.errors import ConfigurationError, DataError
from flagger.settings import Settings
from flagger.state.records import CUSTOMER, TERMINAL

ROOT = Path(__file__).parents[2]
ROUND = Figures(
    own_us=8,
    side_us=1,
    streamer_cpu_us=10,
    triton_rows_per_s=300_000,
    rest_us=10,
    produce_us=10,
    gateway_requests_per_s=100,
    valkey_writes_per_s=200_000,
    customer_bytes=1_100,
    terminal_bytes=900,
)
FEW = 1.0  # customers for each tx/s: memory then plays no part


def test_by_hand() -> None:
    plan = plan_for(ROUND, Demand(100_000, gateway_share=0.1, customers_per_tps=FEW))
    # One cell: side logs 1 us * 100,000 = 0.1 of each thread; 0.5 of it are left for its own:
    # 8 us * 100,000 = 0.8, so two streamers.
    assert (plan.cells, plan.streamers, plan.partitions) == (1, 2, 4)
    assert plan.side_share == pytest.approx(0.1)
    # Own work 9 us * 100,000 = 0.9 cores, and the side logs twice.
    assert plan.streamer_cores == pytest.approx(0.9 + 0.2)
    assert plan.triton_instances == 1  # 100,000 of 180,000
    assert plan.gateways == 100
    assert plan.kafka_cores == pytest.approx((10 + 3 * 10) * 0.1 / 0.6)
    # 30 days at a third of the peak, read at 1e6 / (8 / 2 + 1) = 200,000 a second.
    assert plan.rebuild_hours == pytest.approx(30 * 24 / 3 / 2)


def test_memory_by_hand() -> None:
    demand = Demand(1_000, gateway_share=0, customers_per_tps=1_000, customers_per_terminal=10)
    assert demand.valkey_bytes(ROUND) == pytest.approx(1e6 * 1_100 + 1e5 * 900)
    stored = replace(demand, gateway_share=0.3).valkey_bytes(ROUND) - demand.valkey_bytes(ROUND)
    assert stored == pytest.approx(100 * 86_400 * 300)


@given(
    rate=st.floats(1, 5e6),
    share=st.floats(0, 1),
    used=st.floats(0.1, 0.9),
    customers=st.floats(1, 20_000),
)
def test_a_plan_holds_its_own_bounds(
    rate: float, share: float, used: float, customers: float
) -> None:
    demand = Demand(rate, share, used, customers_per_tps=customers)
    plan = plan_for(ROUND, demand)
    per_cell = rate / plan.cells
    in_cell = plan.streamers / plan.cells
    thread = (ROUND.own_us * per_cell / in_cell + ROUND.side_us * per_cell) / 1e6
    slack = 1 + 1e-9
    assert thread <= used * slack
    assert plan.side_share <= used / 2 * slack
    assert in_cell <= plan.partitions <= MAX_PARTITIONS
    assert plan.valkey_bytes / plan.cells <= demand.valkey_max_bytes * slack
    assert plan.valkey_writes_per_s / plan.cells <= used * ROUND.valkey_writes_per_s * slack
    assert plan.triton_instances * ROUND.triton_rows_per_s * used * slack >= rate
    assert plan.gateways * ROUND.gateway_requests_per_s * slack >= rate * share
    assert plan.cells == 1 or any(
        rate / (plan.cells - 1) > limit.rate
        for limit in limits_of(ROUND, demand)
        if "more cells" in limit.remedy
    ), "fewer cells would do"


def test_limits_come_in_their_order() -> None:
    limits = limits_of(ROUND, Demand(1))
    assert [limit.rate for limit in limits] == sorted(limit.rate for limit in limits)
    thread = next(limit for limit in limits if limit.what.startswith("a streamer's main"))
    assert thread.rate == pytest.approx(0.6e6 / 9)
    just_below, just_above = (Demand(thread.rate * f, customers_per_tps=FEW) for f in (0.999, 1.01))
    assert plan_for(ROUND, just_below).streamers == 1
    assert plan_for(ROUND, just_above).streamers == 2


def test_figures_come_from_the_benchmarks_results(tmp_path: Path) -> None:
    results = ROOT / "loadtest" / "results"
    figures = Figures.from_results(
        results, valkey_writes_per_s=1, customer_bytes=2, terminal_bytes=3
    )
    assert 0 < figures.side_us < figures.own_us < figures.streamer_cpu_us * 2
    figures.save(tmp_path / "f.json")
    again = Figures.load(tmp_path / "f.json")
    assert again.own_us == pytest.approx(figures.own_us, rel=1e-3)
    (tmp_path / "f.json").write_text("[1]")
    with pytest.raises(DataError, match="--save"):
        Figures.load(tmp_path / "f.json")
    with pytest.raises(DataError, match="bench stream"):
        Figures.from_results(tmp_path, valkey_writes_per_s=1, customer_bytes=1, terminal_bytes=1)


def test_the_command() -> None:
    run = CliRunner().invoke(scale, ["--rate", "2000", "--customers", "1000000"])
    assert run.exit_code == 0, run.output
    assert "| streamers | 1 |" in run.output
    assert "a gateway process" in run.output
    assert CliRunner().invoke(scale, ["--rate", "0"]).exit_code == 2


def test_the_page_quotes_the_command() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    quoted = re.search(r"```text\n\$ flagger scale\n(.*?)```", page, re.DOTALL)
    assert quoted, "docs/scaling.md has no output of `flagger scale`"
    run = CliRunner().invoke(scale, [])
    assert quoted[1].split() == run.output.split(), "paste the output of `flagger scale` again"


@pytest.mark.stack
def test_valkey_is_measured_on_an_empty_database_only(own_valkey: LocalStack) -> None:
    url = own_valkey.addresses.valkey_url
    client: Any = valkey.Valkey.from_url(url)
    client.flushdb()
    found = measure_valkey(url)
    assert found.writes_per_s > 1_000
    assert CUSTOMER.itemsize < found.customer_bytes < 1.5 * CUSTOMER.itemsize
    assert TERMINAL.itemsize < found.terminal_bytes < 1.5 * TERMINAL.itemsize
    assert client.dbsize() == 0
    client.set("somebody", "else")
    try:
        with pytest.raises(ConfigurationError, match="not empty"):
            measure_valkey(url)
        assert client.get("somebody") == b"else"
    finally:
        client.flushdb()
        client.close()


def test_partitions_are_those_of_the_settings() -> None:
    assert Settings(partitions=MAX_PARTITIONS).partitions == MAX_PARTITIONS
    with pytest.raises(ValueError, match="partitions"):
        Settings(partitions=MAX_PARTITIONS + 1)
