"""How samples of the profiler become steps."""

from __future__ import annotations

import pytest

from flagger.errors import StackError
from loadtest.bench_profile import steps_of

RUN = "main (flagger/cli.py:9);Pipeline.run (streamer/pipeline.py:130)"


def test_a_sample_counts_for_our_innermost_function() -> None:
    steps = steps_of(
        [
            f"{RUN};DecisionSink.write (streamer/sink.py:150);produce (confluent_kafka/x.py:3) 60",
            f"{RUN};DecisionSink.write.<locals>.<listcomp> (streamer/sink.py:151) 20",
            f"{RUN};OutputWriter._send (streamer/outputs.py:99) 19",
            f"{RUN};Rare.call (streamer/rare.py:1) 1",
            "Committer._run (streamer/committer.py:80) 500",  # another thread
        ]
    )
    assert steps == {
        "DecisionSink.write, streamer/sink.py": 0.8,
        "OutputWriter._send, streamer/outputs.py": 0.19,
        "other": pytest.approx(0.01),
    }


def test_a_profile_without_the_main_thread_is_an_error() -> None:
    with pytest.raises(StackError, match="no sample of the streamer's main thread"):
        steps_of(["Committer._run (streamer/committer.py:80) 500"])
