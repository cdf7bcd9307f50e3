"""Rows share calls; whoever asks is answered once, whatever the others do."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flagger.errors import ModelRefusedError, ModelUnavailableError
from flagger.triton import ModelName
from gateway.micro_batch import LOST_AFTER_MS, MAX_CALLS, MAX_ROWS, MicroBatcher

pytestmark = pytest.mark.anyio
MODEL = ModelName("m", "1")


class Server:
    """Scores a row by its first value; refuses negative ones."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.models: list[ModelName] = []
        self.limits_ms: list[float] = []
        self.open = asyncio.Event()
        self.under_way = 0
        self.most = 0
        self.error: Exception | None = None

    async def score(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        self.sizes.append(len(rows))
        self.models.append(model)
        self.limits_ms.append(timeout_ms)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.open.wait()
        self.under_way -= 1
        if self.error is not None:
            raise self.error
        if (rows[:, 0] < 0).any():
            raise ModelRefusedError("negative")
        return rows[:, 0].copy()

    async def close(self) -> None:
        return None


def ask(batcher: MicroBatcher, value: float, model: ModelName = MODEL) -> asyncio.Task[Any]:
    row = np.full((1, 3), value, dtype=np.float32)
    return asyncio.create_task(batcher.score(row, model, 5_000))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_rows_that_wait_travel_together_and_each_gets_its_own_score() -> None:
    server: Any = Server()
    batcher = MicroBatcher(server)
    asked = []
    for i in range(100):
        asked.append(ask(batcher, i / 100))
        await settle()
    server.open.set()
    scores = [float((await one)[0]) for one in asked]
    assert scores == pytest.approx([i / 100 for i in range(100)])
    assert server.most == MAX_CALLS
    assert server.sizes == [1, 1, MAX_ROWS, 98 - MAX_ROWS]


async def test_caller_that_gives_up_takes_nobody_along() -> None:
    server: Any = Server()
    batcher = MicroBatcher(server)
    asked = []
    for i in range(8):
        asked.append(ask(batcher, i / 10))
        await settle()
    for gone in (asked[0], asked[4], asked[5]):  # one under way, two that wait
        gone.cancel()
    server.open.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    answered = [i for i, one in enumerate(found) if not isinstance(one, BaseException)]
    assert answered == [1, 2, 3, 6, 7]
    assert sum(server.sizes) == 6
    assert float((await ask(batcher, 0.9))[0]) == pytest.approx(0.9)


async def test_no_further_calls_while_those_that_all_gave_up_on_are_not_answered() -> None:
    server: Any = Server()
    batcher = MicroBatcher(server)
    for _ in range(5):
        for value in (0.1, 0.2, 0.3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await batcher.score(np.full((1, 3), value, dtype=np.float32), MODEL, 10.0)
    assert len(server.sizes) == MAX_CALLS
    assert server.limits_ms == [LOST_AFTER_MS] * MAX_CALLS
    server.open.set()
    assert float((await ask(batcher, 0.4))[0]) == pytest.approx(0.4)
    assert sum(server.sizes) == MAX_CALLS + 1


async def test_refused_row_spoils_no_other() -> None:
    server: Any = Server()
    batcher = MicroBatcher(server)
    asked = [ask(batcher, value) for value in (0.1, 0.2, 0.3, -1.0, 0.5)]
    await settle()
    server.open.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [isinstance(one, ModelRefusedError) for one in found] == [False] * 3 + [True, False]


@pytest.mark.parametrize("error", [ModelUnavailableError("down"), RuntimeError("bug")])
async def test_failure_reaches_all_and_the_next_call_works(error: Exception) -> None:
    server: Any = Server()
    batcher = MicroBatcher(server)
    server.error = error
    asked = [ask(batcher, 0.1) for _ in range(5)]
    server.open.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(one) for one in found} == {type(error)}
    server.error = None
    assert float((await ask(batcher, 0.4))[0]) == pytest.approx(0.4)


async def test_rows_of_two_models_are_not_mixed() -> None:
    server: Any = Server()
    batcher = MicroBatcher(server)
    asked = [ask(batcher, 0.1, ModelName("m", str(i // 3))) for i in range(8)]
    await settle()
    server.open.set()
    await asyncio.gather(*asked)
    assert list(zip(server.models, server.sizes, strict=True)) == [
        (ModelName("m", "0"), 3),
        (ModelName("m", "1"), 3),
        (ModelName("m", "2"), 2),
    ]
