"""A client library that hangs while it leaves its group keeps no process from ending."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from flagger import leave_group as module
from flagger.leave_group import leave_group

END_S = 30


class Consumer:
    """Closes as it is told."""

    def __init__(self, close: Any) -> None:
        self.close = close


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(module, "LEAVE_S", 0.05)
    end = threading.Event()
    yield Consumer(lambda: end.wait(END_S))
    end.set()


def test_a_consumer_that_hangs_is_given_up_and_said(
    hanging: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        leave_group(hanging)
    assert "did not leave the consumer group within 0.05 s" in caplog.text


def test_one_that_closes_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    closed = []
    consumer: Any = Consumer(lambda: closed.append(True))
    leave_group(consumer)
    assert closed == [True]
    assert not caplog.text


@pytest.mark.parametrize("error", [RuntimeError("handed over badly"), TimeoutError("its own")])
def test_what_a_callback_raises_is_raised(error: Exception) -> None:
    def close() -> None:
        raise error

    consumer: Any = Consumer(close)
    with pytest.raises(type(error), match=str(error)):
        leave_group(consumer)


def test_the_process_ends_without_it() -> None:
    program = (
        "import time, types\n"
        "from flagger import leave_group\n"
        "leave_group.LEAVE_S = 0.05\n"
        "leave_group.leave_group(types.SimpleNamespace(close=lambda: time.sleep(600)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=END_S, check=False)
    assert done.returncode == 0
