"""Runs commits one after the other, in a thread that this process does not wait for at its end.

The client library can hang in `send_offsets_to_transaction` beyond any timeout when the group's
coordinator went away at the wrong moment (librdkafka#5456, #5511). Such a commit is overdue: it is
given up, and a process that ends does not wait for its thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from flagger.errors import StackError

__all__ = ["Committer"]


class Committer:
    """One commit at a time.

    Args:
        limit_s: How long a commit may take before it counts as hung.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._work: SimpleQueue[tuple[Future[None], Callable[[], None]] | None] = SimpleQueue()
        self._future: Future[None] | None = None
        self._started_s = 0.0
        # A daemon: the interpreter does not join it. A pool's threads are joined, hung or not.
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """True while a commit is under way and not overdue."""
        return self._future is not None and not self._future.done() and not self.is_overdue

    @property
    def is_overdue(self) -> bool:
        """True if the commit under way has taken too long: its producer must not be used again."""
        return (
            self._future is not None
            and not self._future.done()
            and time.monotonic() - self._started_s > self._limit_s
        )

    def start(self, commit: Callable[[], None]) -> None:
        """Start to run a commit; the one before must be settled."""
        if self._future is not None:
            raise RuntimeError("the commit before is not settled")
        self._future, self._started_s = Future(), time.monotonic()
        self._work.put((self._future, commit))

    def settle(self) -> None:
        """Wait for the commit under way, if any; what it raised is raised here.

        Raises:
            StackError: It is overdue.
        """
        if self._future is None:
            return
        try:
            self._future.result(max(0.0, self._started_s + self._limit_s - time.monotonic()))
        except TimeoutError:
            if self._future.done():  # the commit itself raised it
                raise
            raise StackError(
                f"Kafka did not finish a commit within {self._limit_s:g} s. Nothing of it is "
                f"visible; start this streamer again, it goes on from the last committed offset."
            ) from None
        self._future = None

    def close(self) -> None:
        """End the thread after the commit under way; one that is overdue is left alone."""
        self._work.put(None)
        if self._future is not None:
            self._thread.join(max(0.0, self._started_s + self._limit_s - time.monotonic()))
        else:
            self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, commit = work
            try:
                commit()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)
