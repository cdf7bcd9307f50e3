"""A commit that never ends must not keep the streamer, or the end of its process, waiting."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from flagger.errors import StackError
from streamer.committer import Committer

LIMIT_S = 0.2
HUNG = """
import threading
from flagger.errors import StackError
from streamer.committer import Committer

committer = Committer(0.2)
committer.start(threading.Event().wait)
try:
    committer.settle()
except StackError:
    committer.close()
    print("given up")
"""


def _until(event: threading.Event) -> Callable[[], None]:
    """Return a commit that takes until the event."""

    def commit() -> None:
        event.wait()

    return commit


def test_commits_run_in_their_order_and_settle_waits() -> None:
    committer = Committer(5.0)
    done: list[int] = []
    for number in range(3):
        committer.start(functools.partial(done.append, number))
        committer.settle()
        assert not committer.busy
    committer.close()
    assert done == [0, 1, 2]


def test_a_commit_under_way_is_busy() -> None:
    committer, may_end = Committer(5.0), threading.Event()
    committer.start(_until(may_end))
    busy_before = committer.busy
    may_end.set()
    committer.settle()
    assert (busy_before, committer.busy) == (True, False)
    committer.close()


def test_what_a_commit_raises_is_raised_again_until_the_end() -> None:
    committer = Committer(5.0)

    def fails() -> None:
        raise TimeoutError("of its own")

    committer.start(fails)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="of its own"):
            committer.settle()
    committer.close()


def test_an_overdue_commit_is_given_up() -> None:
    committer, may_end = Committer(LIMIT_S), threading.Event()
    started_s = time.monotonic()
    committer.start(_until(may_end))
    with pytest.raises(StackError, match=r"did not finish a commit within 0.2 s"):
        committer.settle()
    assert committer.is_overdue
    assert not committer.busy
    committer.close()
    assert LIMIT_S <= time.monotonic() - started_s < LIMIT_S + 2
    may_end.set()


def test_a_process_ends_although_its_commit_hangs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "given up\n"
