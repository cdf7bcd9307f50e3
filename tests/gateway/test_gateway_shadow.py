"""The gateway's shadow on the real Kafka, Triton and Valkey: it is counted, and changes nothing."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest

import gateway.shadow
from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.policies import set_policy
from flagger.settings import Settings
from flagger.trials import set_canary, set_shadow
from flagger.triton import ModelName
from gateway.app import create_app
from gateway.shadow import GatewayShadow
from loadtest.unloaded import unloaded
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.anyio, pytest.mark.stack]
COMPARED = "flagger_gateway_shadow_decisions_total"
SKIPPED = "flagger_gateway_shadow_skipped_total"
CUSTOMERS = 20


@dataclass
class Running:
    """A gateway in this process, on the real servers."""

    client: httpx.AsyncClient
    app: Any

    @property
    def shadow(self) -> GatewayShadow:
        found = self.app.state.door.shadow
        assert isinstance(found, GatewayShadow)
        return found

    def counted(self, metric: str, **labels: str) -> float:
        """Return the sum over the series that have these labels."""
        families = self.app.state.door.metrics.registry.collect()
        samples = (sample for family in families for sample in family.samples)
        found: list[float] = [
            sample.value
            for sample in samples
            if sample.name == metric and labels.items() <= sample.labels.items()
        ]
        return sum(found)

    async def score_all(self, n: int = CUSTOMERS) -> list[dict[str, Any]]:
        """Score a payment of each of n new customers, one after the other; return the answers."""
        answers = []
        for sent in payments(n):
            response = await self.client.post("/v1/score", json=sent)
            assert response.status_code == 200, response.text
            answers.append(response.json())
        return answers

    async def wait_for(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not done():  # noqa: ASYNC110 - a file, and counters
                await asyncio.sleep(0.02)

    async def wait_until_asked(self, version: str) -> None:
        await self.wait_for(
            lambda: (
                (on := self.shadow._trial.on) is not None and on.serving.model.version == version
            )
        )


Start = Callable[..., AbstractAsyncContextManager[Running]]


def payments(n: int) -> list[dict[str, Any]]:
    """Return a payment of each of n customers whom nobody knows yet."""
    run = uuid.uuid4().hex
    return [
        {
            "transaction_id": f"{run}-{i}",
            "event_time": "2026-01-31T12:00:00Z",
            "customer_id": f"c-{run}-{i}",
            "terminal_id": f"m-{run}",
            "amount": 5.0 * (i + 1) ** 2,
            "currency": "EUR",
        }
        for i in range(n)
    ]


def told(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers without what differs between equal payments."""
    return [
        {name: value for name, value in one.items() if name not in ("transaction_id", "latency_ms")}
        for one in answers
    ]


@pytest.fixture(scope="module")
def candidate(stack: LocalStack, published: tuple[Path, str], small_training: Path) -> str:
    """The same trees as another version, served beside the live one: it sends all to review."""
    repository, _ = published
    url = stack.addresses.triton_url
    version = export_model(
        small_training, repository, triton_url=url, n_parity_rows=100, make_live=False
    )
    set_policy(repository, 1e-9, 1.0, version=version)
    return version


@pytest.fixture(autouse=True)
def _wide_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy build machine fails no call and skips no row; tests of the limits narrow them."""
    monkeypatch.setattr(gateway.shadow, "TIMEOUT_MS", 20_000.0)
    monkeypatch.setattr(gateway.shadow, "MAX_IN_FLIGHT", 1_000)


@pytest.fixture
def start(stack: LocalStack, published: tuple[Path, str]) -> Iterator[Start]:
    """Return a function that starts a gateway; what it tries ends with the test."""
    repository, _ = published
    settings = stack.settings().model_copy(
        update={
            "transactions_topic": f"transactions-shadow-{uuid.uuid4().hex}",
            "model_repository": repository,
            "gateway_auth": "off",
            "gateway_deadline_ms": 2_000,  # a busy build machine
            "gateway_batch_deadline_ms": 5_000,
            "shadow_rows_per_s": 100_000,
        }
    )
    ensure_topics(settings)

    @asynccontextmanager
    async def run(**changes: Any) -> AsyncIterator[Running]:
        app = create_app(Settings.model_validate(settings.model_dump() | changes))
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
        ):
            yield Running(client, app)

    yield run
    set_shadow(repository, None)
    set_canary(repository, None)


def hold(running: Running, held: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the shadow's calls wait for an event, and nothing else."""
    first = running.shadow._scorer.score

    async def score(
        rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        await held.wait()
        return await first(rows, model, timeout_ms)

    monkeypatch.setattr(running.shadow._scorer, "score", score)


async def test_answers_are_those_without_a_shadow_and_each_is_compared(
    start: Start, published: tuple[Path, str], candidate: str
) -> None:
    repository, _ = published
    async with start() as running:
        before = await running.score_all()
        set_shadow(repository, candidate)
        await running.wait_until_asked(candidate)
        assert told(await running.score_all()) == told(before)
        await running.wait_for(lambda: running.counted(COMPARED) == CUSTOMERS)
        for word in ("approve", "review", "decline"):
            decided = [answer for answer in before if answer["decision"] == word]
            assert running.counted(COMPARED, live=word, shadow="review") == len(decided)
        assert {answer["decision_source"] for answer in before} == {"model"}

        sent = payments(3)
        for body in (*sent, *sent):  # the second time it is a repeat
            assert (await running.client.post("/v1/score", json=body)).status_code == 200
        await running.wait_for(lambda: running.counted(COMPARED) == CUSTOMERS + 3)
        batch = await running.client.post("/v1/score/batch", json={"transactions": payments(30)})
        assert {one["status"] for one in batch.json()["results"]} == {200}
        await running.wait_for(lambda: running.counted(COMPARED) == CUSTOMERS + 33)

        set_shadow(repository, None)
        await running.wait_for(lambda: not running.shadow.is_wanted)
        await running.score_all(2)
        assert running.counted(COMPARED) == CUSTOMERS + 33
        assert running.counted(SKIPPED) == 0


async def test_what_triton_does_not_serve_is_counted_and_answers_go_on(
    start: Start,
    stack: LocalStack,
    published: tuple[Path, str],
    candidate: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    repository, live = published
    set_shadow(repository, candidate)
    async with start() as running:
        await running.wait_until_asked(candidate)
        with unloaded(repository, candidate, stack.addresses.triton_url):
            answers = await running.score_all(5)
            await running.wait_for(lambda: running.counted(SKIPPED, reason="failed") == 5)
            assert not running.app.state.door.service.breakers["triton"].is_open
            async with start() as second:  # here it was never there
                await second.wait_for(lambda: second.shadow.is_wanted)
                assert f"Version {candidate} is not compared" in caplog.text
                answers += await second.score_all(3)
                assert second.counted(SKIPPED, reason="refused") == 3
        assert running.counted(COMPARED) == 0
    assert {answer["model_version"] for answer in answers} == {live}


async def test_what_finds_too_many_rows_under_way_is_skipped_and_nobody_waits(
    start: Start, published: tuple[Path, str], candidate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, live = published
    set_shadow(repository, candidate)
    async with start() as running:
        await running.wait_until_asked(candidate)
        held = asyncio.Event()
        hold(running, held, monkeypatch)
        monkeypatch.setattr(gateway.shadow, "MAX_IN_FLIGHT", 4)
        answers = await running.score_all(9)  # all come while the first call hangs
        assert {answer["model_version"] for answer in answers} == {live}
        assert running.counted(SKIPPED, reason="busy") == 5
        assert running.counted(COMPARED) == 0
        held.set()
        await running.wait_for(lambda: running.counted(COMPARED) == 4)
        assert running.counted(SKIPPED) == 5
        held.clear()
        monkeypatch.setattr(gateway.shadow, "TIMEOUT_MS", 20.0)
        await running.score_all(1)
        await running.wait_for(lambda: running.counted(SKIPPED, reason="failed") == 1)
        monkeypatch.setattr(gateway.shadow, "TIMEOUT_MS", 60_000.0)
        await running.score_all(1)
        await running.wait_for(lambda: running.shadow._asked == 1)
        stopped_s = time.monotonic()
    assert time.monotonic() - stopped_s < 30  # what hung was given up
    assert running.shadow._task is not None
    assert running.shadow._task.cancelled()


async def test_rows_beyond_the_rate_and_those_of_the_canary_are_not_compared(
    start: Start, published: tuple[Path, str], candidate: str
) -> None:
    repository, _ = published
    set_shadow(repository, candidate)
    set_canary(repository, candidate, 0.5)
    async with start(shadow_rows_per_s=1) as running:
        await running.wait_until_asked(candidate)
        canary = running.app.state.door.service.canary
        await running.wait_for(lambda: canary._trial.on is not None)
        answers = await running.score_all(40)
        theirs = sum(answer["model_version"] == candidate for answer in answers)
        assert 0 < theirs < 40
        assert running.counted(SKIPPED, reason="canary") == theirs
        beyond = running.counted(SKIPPED, reason="rate")
        assert beyond > 0
        await running.wait_for(lambda: running.counted(COMPARED) == 40 - theirs - beyond)
