"""Rows of requests that are under way at the same time travel to Triton together.

Nobody waits for company: a row goes at once while fewer than `MAX_CALLS` calls are under way. Under
load, the rows that arrive meanwhile go with the next call, so batches grow with the load and a call
costs a request less than one of its own would.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextvars import Context, copy_context
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelError, ModelRefusedError
from flagger.triton import ModelName
from gateway.ports import ModelScorer

__all__ = ["MicroBatcher"]

MAX_CALLS = 2
"""Calls under way: one is computed while the other travels."""
MAX_ROWS = 64
"""Most rows of one call: small, so that no request waits for many others."""
LOST_AFTER_MS = 1_000.0
"""A call keeps its place until Triton has answered, even if all of its callers have given up: more
calls would only wait in Triton. After that long it counts as lost."""


@dataclass(slots=True)
class _Waiting:
    """One row and who waits for its score."""

    row: npt.NDArray[np.float32]
    model: ModelName
    end_s: float
    future: asyncio.Future[npt.NDArray[np.float32]]
    context: Context


class MicroBatcher:
    """A `ModelScorer` that puts the rows of several callers into one call.

    Each caller is answered once, whatever happens to the others: who has given up is passed over,
    and rows that were refused together are asked again one by one.

    Args:
        scorer: Asks Triton.
    """

    def __init__(self, scorer: ModelScorer) -> None:
        self._scorer = scorer
        self._waiting: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def score(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the score of one row, float32 [1, F]; raises ModelError.

        The caller keeps `timeout_ms` itself, by giving up: a call is for several callers.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(
            _Waiting(rows, model, time.monotonic() + timeout_ms / 1000, future, copy_context())
        )
        if len(self._calls) < MAX_CALLS:
            self._start()
        found: npt.NDArray[np.float32] = await future
        return found

    async def explain(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the contributions of float32 [n, F] rows, float32 [n, F + 1]; raises ModelError.

        Not put together: few transactions are flagged.
        """
        return await self._scorer.explain(rows, model, timeout_ms)

    async def is_live(self) -> bool:
        """Return True if the server answers."""
        return await self._scorer.is_live()

    async def is_ready(self, model: ModelName) -> bool:
        """Return True if the model version is loaded."""
        return await self._scorer.is_ready(model)

    async def close(self) -> None:
        """Give up the calls under way and close the connection."""
        for call in tuple(self._calls):
            call.cancel()
        await self._scorer.close()

    def _start(self) -> None:
        # A call belongs to the trace of its first row; without this, to that of the call before.
        task = asyncio.create_task(self._call(), context=self._waiting[0].context)
        self._calls.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and self._waiting:
            self._start()

    def _take(self) -> list[_Waiting]:
        """Take the oldest waiting rows that are for the same model."""
        taken: list[_Waiting] = []
        while self._waiting and len(taken) < MAX_ROWS:
            if self._waiting[0].future.done():  # its caller has given up
                self._waiting.popleft()
            elif taken and self._waiting[0].model != taken[0].model:
                break
            else:
                taken.append(self._waiting.popleft())
        return taken

    async def _call(self) -> None:
        taken = self._take()
        if not taken:
            return
        try:
            await self._ask(taken)
        except ModelRefusedError as error:
            if len(taken) == 1:
                _fail(taken, error)
            for one in taken if len(taken) > 1 else ():
                try:
                    await self._ask([one])
                except ModelError as own_error:
                    _fail([one], own_error)
        except Exception as error:
            _fail(taken, error)

    async def _ask(self, taken: list[_Waiting]) -> None:
        rows = taken[0].row if len(taken) == 1 else np.concatenate([one.row for one in taken])
        left_ms = (max(one.end_s for one in taken) - time.monotonic()) * 1000
        scores = await self._scorer.score(rows, taken[0].model, max(left_ms, LOST_AFTER_MS))
        for i, one in enumerate(taken):
            if not one.future.done():
                one.future.set_result(scores[i : i + 1])


def _fail(taken: list[_Waiting], error: Exception) -> None:
    for one in taken:
        if not one.future.done():
            one.future.set_exception(error)
