"""The simulation of streamers: conservation, queueing theory, order, and the command's table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from deploy.scale_simulation import (
    Costs,
    Outage,
    arrivals_s,
    compare,
    serve,
    shares,
    simulate,
    stretch_of,
)
from deploy.scaling import Demand, Figures
from deploy.scaling_cli import scale
from flagger.errors import DataError

ROOT = Path(__file__).parents[2]
COSTS = Costs(batch_s=0.003, row_s=8e-6, commit_s=0.011)
FEW = 1.0  # customers for each tx/s: memory then plays no part


@pytest.mark.parametrize("outage", [None, Outage(3.0, 2.0), Outage(9.99, 1.0)])
@pytest.mark.parametrize("rate", [50, 9_000, 90_000])
def test_every_arrival_is_served_once(rate: float, outage: Outage | None) -> None:
    arrivals = arrivals_s(rate, 10.0, np.random.default_rng(1), bursts=True)
    served = serve(arrivals, COSTS, outage)
    assert (served.commits == 1).all()
    assert len(served.committed_s) == len(arrivals)
    least_s = COSTS.batch_s + COSTS.row_s + COSTS.commit_s
    assert (served.committed_s - arrivals >= least_s - 1e-9).all()
    assert (np.diff(served.committed_s) >= 0).all()
    if outage is not None:
        down = (served.committed_s > outage.at_s) & (
            served.committed_s <= outage.at_s + outage.recovery_s
        )
        assert not down.any()
    else:
        assert served.read_again == 0


def test_the_mean_wait_is_that_of_m_d_1() -> None:
    service_s, load = 0.001, 0.7
    costs = Costs(service_s, 0.0, linger_s=0.0, interval_s=0.0, max_batch_rows=1)
    arrivals = arrivals_s(load / service_s, 400.0, np.random.default_rng(2), bursts=False)
    waited = serve(arrivals, costs).committed_s - arrivals - service_s
    # Pollaczek and Khinchine: load * service / (2 (1 - load)).
    assert waited.mean() == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.05)


def test_shared_cores_stretch_as_m_m_c_does() -> None:
    assert stretch_of(0.0, 2) == 1
    assert stretch_of(0.7, 1) == pytest.approx(1 / 0.3)  # M/M/1
    assert stretch_of(1.4, 2) == pytest.approx(1 / (1 - 0.7**2))  # M/M/2
    # Erlang's C of 4 cores and 3 Erlang is 0.5094: tables of teletraffic.
    assert stretch_of(3.0, 4) == pytest.approx(1 + 0.5094 / (4 - 3), abs=1e-4)
    assert stretch_of(2.5, 2) == stretch_of(1.9, 2)  # more than all: as 95 %


def test_where_others_use_the_cores_a_message_takes_longer() -> None:
    stretched = replace(COSTS, stretch=2.0)
    arrivals = np.arange(0, 400.0, 0.2)  # each alone
    took_s = serve(arrivals, stretched).committed_s - arrivals
    least_s = COSTS.batch_s + COSTS.row_s + COSTS.commit_s
    assert took_s.min() >= least_s
    assert took_s.mean() == pytest.approx(COSTS.row_s + 2 * (least_s - COSTS.row_s), rel=0.05)


def test_a_lone_message_takes_the_fixed_times() -> None:
    served = serve(np.array([1.0]), COSTS)
    assert served.committed_s[0] - 1.0 == pytest.approx(0.003 + 8e-6 + 0.011)


def test_a_lost_streamer_reads_again_and_lags_by_what_arrived() -> None:
    arrivals = np.arange(0, 10.0, 0.001)
    served = serve(arrivals, COSTS, Outage(4.0, 2.0))
    assert 0 < served.read_again < 100
    _, lag = served.lag()
    assert 2_000 <= lag.max() < 2_100
    assert (served.committed_s - arrivals).max() == pytest.approx(2.0, abs=0.1)


def test_bursts_keep_the_mean_and_spread_it_wider() -> None:
    rng = np.random.default_rng(3)
    plain, bursts = (arrivals_s(1_000, 400.0, rng, bursts=on) for on in (False, True))
    assert len(bursts) == pytest.approx(len(plain), rel=0.05)
    spread = [np.histogram(a, 800)[0].var() for a in (plain, bursts)]
    assert spread[1] > 5 * spread[0]


def test_shares_are_skewed_and_whole() -> None:
    found = shares(264, 66, 200_000, np.random.default_rng(4))
    assert found.shape == (66,)
    assert found.sum() == pytest.approx(1)
    assert found.max() > 1.3 / 66  # the partition of the customer who pays most


def test_more_streamers_have_a_lower_p99() -> None:
    figures = Figures.load()
    demand = Demand(100_000, customers_per_tps=FEW)
    p99_ms = [simulate(demand, figures, streamers=count).p99_ms for count in (1, 2, 4)]
    assert p99_ms[0] > p99_ms[1] > p99_ms[2]


def test_a_seed_gives_the_same_numbers() -> None:
    figures, demand = Figures.load(), Demand(10_000)
    assert simulate(demand, figures) == simulate(demand, figures)
    assert simulate(demand, figures) != simulate(demand, figures, seed=16)


def test_more_customers_are_spread_more_evenly() -> None:
    few, many = (shares(264, 66, n, np.random.default_rng(4)).max() for n in (2e5, 1e10))
    assert 1 / 66 < many < few


def test_the_page_tells_what_is_simulated() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    for rate in (1_000, 10_000, 100_000, 1_000_000):
        found = simulate(Demand(rate), Figures.load())
        row = (
            f"| {rate:,} | {found.streamers} | {found.sampled} | {found.p50_ms:.1f} | "
            f"{found.p99_ms:.1f} | {found.utilisation:.0%} | {found.peak_lag:,} | "
            f"{found.catch_up_s:.2f} |"
        )
        assert row in page, f"docs/scaling.md is not of these figures; it should say {row}"


def test_the_page_tells_the_errors_as_they_are() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    for found in compare(Figures.load()):
        cells = [f"{found.rate:,}"]
        for measured, made in zip(found.measured_ms, found.simulated_ms, strict=True):
            cells += [f"{measured:.1f}", f"{made:.1f}", f"{made / measured - 1:+.0%}"]
        row = "| " + " | ".join(cells) + " |"
        assert row in page, f"docs/scaling.md is not of these results; it should say {row}"


def test_a_missing_result_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="rival-per-message"):
        Costs.load(Figures.load(), 1, tmp_path)


def test_the_command_prints_the_tables() -> None:
    shown = CliRunner().invoke(scale, ["--simulate", "--rate", "1000", "--rate", "100000"])
    assert shown.exit_code == 0, shown.output
    for text in ("p99 ms", "catch-up s", "1,000", "100,000", "measured", "error"):
        assert text in shown.output
