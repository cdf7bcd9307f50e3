"""Time limits for many futures at once, with one timer for all of them.

`asyncio.timeout` makes a timer for each await, which costs several times what a command to Valkey
does, and hardly any of them ever fires.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Any

__all__ = ["Expiry"]


class Expiry:
    """Ends what has no answer in time, for one event loop: the running one of the first call.

    Done futures are let go at the next turn of the timer, so what is kept is what began within the
    longest limit in use.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[float, int, asyncio.Future[Any]]] = []
        self._order = itertools.count()  # futures cannot be compared
        self._timer: asyncio.Handle | None = None
        self._turn_s = 0.0  # of the timer, by the loop's clock; not every loop's handle can say it

    def limit(self, future: asyncio.Future[Any], timeout_s: float) -> None:
        """Have `future` fail with TimeoutError unless it is done within `timeout_s`."""
        loop = future.get_loop()
        end_s = loop.time() + timeout_s
        heapq.heappush(self._ends, (end_s, next(self._order), future))
        if self._timer is None or end_s < self._turn_s:
            self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._turn_s = self._ends[0][0]
        self._timer = loop.call_at(self._turn_s, self._end)

    def _end(self) -> None:
        """End what is due; wait for the first that is left."""
        self._timer = None
        while self._ends:
            end_s, _, future = self._ends[0]
            loop = future.get_loop()
            if not future.done():
                if end_s > loop.time():
                    self._start(loop)
                    return
                future.set_exception(TimeoutError())
            heapq.heappop(self._ends)
