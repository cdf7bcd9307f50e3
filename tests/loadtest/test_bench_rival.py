"""The rival benchmark, small, on the real stack: both sides do the same work."""

from __future__ import annotations

import asyncio
from datetime import date
from pathlib import Path

import httpx
import msgspec
import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from flagger.models import live_version, load_version, version_folder
from flagger.settings import Settings
from loadtest.bench_rival import RivalPlan, bench_rival
from loadtest.rival import request_bodies
from loadtest.rival_service import create_app
from loadtest.topic_reader import read_topic
from train.simulate import SimulationConfig, simulate

SHIPPED_REPOSITORY = Path(__file__).parents[2] / "model_repository"


class Answer(msgspec.Struct):
    """What both sides' decisions have in common."""

    transaction_id: str
    decision: str
    score: float


@pytest.fixture(scope="module")
def table() -> pa.Table:
    size = SimulationConfig(customers=300, terminals=100, days=10, start=date(2026, 1, 1), seed=9)
    return pa.Table.from_batches(simulate(size))


def answers(settings: Settings, topic: str) -> dict[str, Answer]:
    decoded = [
        msgspec.json.decode(value, type=Answer) for value in read_topic(settings, topic).values
    ]
    return {answer.transaction_id: answer for answer in decoded}


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_the_rival_decides_as_we_do_and_both_are_measured(
    stack: LocalStack, servers: Settings, table: pa.Table, tmp_path: Path
) -> None:
    plan = RivalPlan(messages=100, rate_per_s=40, warm_up_s=0.5, measured_s=1.0)
    result = bench_rival(
        table,
        plan,
        stack.model_repository,
        tmp_path,
        repeats=1,
        on_step=lambda _: None,
        servers=servers,
    )
    assert result.scenario == "rival-per-message"
    assert result.median("stream / rival") == pytest.approx(
        result.median("stream") / result.median("rival")
    )
    assert result.median("rival's HTTP call p50") < 1000 / result.median("rival")
    for side in ("rival", "stream"):
        p50, p99 = (result.median(f"{side}, event to decision p{p} at 40/s") for p in (50, 99))
        assert 0 < p50 <= p99

    theirs = answers(servers, "rival-per-message-rival-0-decisions")
    ours = answers(servers, "rival-per-message-stream-0-decisions")
    assert len(theirs) == plan.messages + 100
    assert len(ours) == table.num_rows
    for transaction_id, answer in theirs.items():
        assert answer.score == pytest.approx(ours[transaction_id].score, abs=1e-5)
        assert answer.decision == ours[transaction_id].decision


def test_the_service_refuses_what_is_no_row(table: pa.Table) -> None:
    version = live_version(SHIPPED_REPOSITORY)
    model = load_version(SHIPPED_REPOSITORY, version)
    app = create_app(version_folder(SHIPPED_REPOSITORY, version) / "xgboost.json")
    good = next(iter(request_bodies(table.slice(0, 5), model).values()))

    async def ask(body: bytes) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://rival") as client:
            headers = {"Content-Type": "application/json"}
            return await client.post("/score", content=body, headers=headers)

    answer = asyncio.run(ask(good))
    assert answer.status_code == 200
    assert 0 <= answer.json()["score"] <= 1
    assert asyncio.run(ask(b'{"features":{"amount":"much"}}')).status_code == 422
