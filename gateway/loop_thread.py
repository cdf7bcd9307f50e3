"""An event loop on a thread of its own: asynchronous work for callers that block."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

__all__ = ["LoopThread", "LoopThreadError"]

_T = TypeVar("_T")


class LoopThreadError(Exception):
    """The work cannot be done: the loop has ended, or is another process's."""


class LoopThread:
    """Runs coroutines for any number of threads; the loop starts with the first one.

    A process that forks first and works then has a loop of its own; the thread of one that has
    worked before does not come along.

    Args:
        at_end: The last thing that the loop runs, however it ends: closes what it has opened.
    """

    def __init__(self, at_end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._at_end = at_end
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_ended = False
        self._pid = 0

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Return what `work` returns, or raise what it raises.

        Raises:
            LoopThreadError: The loop has ended, before or meanwhile, or belongs to the process
                that this one was forked from.
        """
        with self._lock:  # what is handed over before the end is cancelled by it, never forgotten
            if self._is_ended or (self._loop is not None and self._pid != os.getpid()):
                work.close()
                raise LoopThreadError("it is closed" if self._is_ended else "it was forked")
            future = asyncio.run_coroutine_threadsafe(work, self._loop or self._start())
        try:
            return future.result()
        except CancelledError as error:
            raise LoopThreadError("it was closed meanwhile") from error
        except BaseException:  # such as Ctrl-C: nobody waits any more
            future.cancel()
            raise

    def end(self) -> None:
        """Cancel what is under way and end the loop; may be called again."""
        with self._lock:
            if self._loop is not None and not self._is_ended and self._pid == os.getpid():
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._is_ended = True

    def _start(self) -> asyncio.AbstractEventLoop:
        self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
        work = (self._loop, self._at_end)
        threading.Thread(target=_serve, args=work, name="loop", daemon=True).start()
        return self._loop


def _serve(
    loop: asyncio.AbstractEventLoop, at_end: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(at_end())
    finally:
        loop.close()
