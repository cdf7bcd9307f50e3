"""How long the streamer's loop waits for answers: without a backlog what is decided goes out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from flagger.explanations import PendingExplanations
from flagger.triton import ModelName, Pending
from loadtest.stream_world import StreamWorld, message
from streamer import pipeline
from streamer.canary import CanaryPart, merged
from streamer.commits import Commits
from streamer.in_flight import InFlight
from streamer.source import TransactionSource
from streamer.verdicts import Tried, Verdicts

LONG_S = 30.0
CODES = np.zeros(1, dtype=np.uint8)
SCORES = np.zeros(1, dtype=np.float32)
ROWS = np.zeros((1, 2), dtype=np.float32)


@pytest.mark.stack
@pytest.mark.timeout(120)
def test_what_is_read_is_written_before_more_is_read(
    stream_world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    poll, note_written = TransactionSource.poll, Commits.note_written

    def watched_poll(self: TransactionSource, *args: Any) -> Any:
        events.append("asked")
        polled = poll(self, *args)
        if polled is not None:
            events.append("read")
        return polled

    def watched_note(self: Commits, *args: Any, **options: Any) -> None:
        events.append("written")
        note_written(self, *args, **options)

    monkeypatch.setattr(TransactionSource, "poll", watched_poll)
    monkeypatch.setattr(Commits, "note_written", watched_note)
    monkeypatch.setattr(pipeline, "_ANSWER_WAIT_S", LONG_S)
    stream_world.send([message(0)])
    sent = 1

    def done(_: Any) -> bool:
        nonlocal sent
        if len(stream_world.decided()) >= sent:
            stream_world.send([message(sent)])
            sent += 1
        return sent > 10

    stream_world.run_until(done)
    reads = [i for i, event in enumerate(events) if event == "read"]
    assert len(reads) >= 10
    assert {events[i + 1] for i in reads} == {"written"}


def batch(**parts: Any) -> InFlight:
    unused: Any = None
    return InFlight(
        unused,
        np.zeros(1, dtype=np.intp),
        ROWS,
        unused,
        [],
        unused,
        parts.pop("pending", None),
        **parts,
    )


def canary_part(pending: Pending, timeout_s: float = LONG_S) -> CanaryPart:
    lane: Any = SimpleNamespace(timeout_s=timeout_s)
    part = CanaryPart(lane, np.array([True]), ROWS, pending)
    part.has_answer()  # from here on its time counts
    return part


def explained(pending: Pending) -> Verdicts:
    explanation = PendingExplanations(
        ROWS, lambda *_: pending, time.monotonic() + LONG_S, time.monotonic, lambda _: None
    )
    return Verdicts(CODES, "model", SCORES, np.zeros(1, dtype=np.intp), explanation)


def explained_twice(pending: Pending) -> Verdicts:
    live = Verdicts(CODES, "model", SCORES, np.zeros(0, dtype=np.intp))
    return merged(live, explained(pending), Tried(np.array([False, True]), "2", "new"))


NEEDS: dict[str, Callable[[Pending], InFlight]] = {
    "scores": lambda pending: batch(pending=pending),
    "the canary's scores": lambda pending: batch(canary=canary_part(pending)),
    "an explanation": lambda pending: batch(verdicts=explained(pending)),
    "the canary's explanation": lambda pending: batch(verdicts=explained_twice(pending)),
}


@pytest.mark.parametrize("need", NEEDS)
def test_a_batch_waits_for_what_it_needs_and_no_longer(need: str) -> None:
    answer: Future[Any] = Future()
    under_way = NEEDS[need](Pending(answer, 1, ModelName("m", "1")))
    under_way.wait(0.01)
    assert not answer.done()
    timer = threading.Timer(0.05, lambda: answer.set_result(None))
    timer.start()
    started_s = time.monotonic()
    under_way.wait(LONG_S)
    assert answer.done()
    assert time.monotonic() - started_s < LONG_S / 2
    timer.join()


def test_a_canary_is_waited_for_until_its_time_is_over() -> None:
    under_way = batch(canary=canary_part(Pending(Future(), 1, ModelName("m", "1")), 0.05))
    started_s = time.monotonic()
    under_way.wait(LONG_S)
    assert time.monotonic() - started_s < LONG_S / 2
    assert under_way.has_answers()
