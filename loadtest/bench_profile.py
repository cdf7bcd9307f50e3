"""`stream-profile`: where the streamer's time goes, per transaction.

A sampling profiler (py-spy) looks 200 times a second at the streamer that works off a full topic.
Beside it: the system's own account of the CPU time of each thread and of each server. What it does
not show: the rate, which the profiler lowers; see `stream-prefilled`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pyarrow as pa

from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.settings import Settings
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import BenchStreamer, own_outputs, stream_backlog
from loadtest.observe import wait_for_decided
from loadtest.processes import wait_for_url
from loadtest.usage import CpuClock
from streamer.produce import ReplayProducer
from streamer.topics import ensure_topics

__all__ = ["bench_profile", "steps_of"]

SCENARIO = "stream-profile"
_SAMPLES_PER_S = 200
_ROOT = "Pipeline.run"
_OURS = ("streamer/", "flagger/")
_LEAST_SHARE = 0.015
"""A step with less of the main thread's time goes to `other`."""
_END_S = 30.0


def steps_of(stacks: Iterable[str]) -> dict[str, float]:
    """Return our own function -> its share of the main thread's samples, the largest first.

    The rest is `other`.

    A sample counts for the innermost of our functions in it: what it calls in libraries is part of
    it, what it calls of ours is not.

    Args:
        stacks: Lines of py-spy's raw format: frames from the outside in, divided by `;`, and the
            number of samples.

    Raises:
        StackError: The main thread is not in any of them.
    """
    samples: Counter[str] = Counter()
    for line in stacks:
        frames, _, count = line.rpartition(" ")
        ours = [f for f in frames.split(";") if any(folder in f for folder in _OURS)]
        if any(f.startswith(_ROOT) for f in ours):
            samples[_name(ours[-1])] += int(count)
    total = samples.total()
    if not total:
        raise StackError("The profile has no sample of the streamer's main thread.")
    shares = {step: n / total for step, n in samples.most_common() if n >= _LEAST_SHARE * total}
    return shares | {"other": 1.0 - sum(shares.values())}


def _name(frame: str) -> str:
    """Return `Class.function, folder/file.py` of py-spy's `Class.function (folder/file.py:12)`."""
    function, _, place = frame.rstrip(")").partition(" (")
    return f"{function.partition('.<locals>')[0]}, {place.rpartition(':')[0] or place}"


def _thread_cpu_s(pid: int) -> dict[str, float]:
    """Return name of a thread -> CPU seconds so far, those of equal names together."""
    found: dict[str, float] = {}
    for thread in psutil.Process(pid).threads():
        comm = Path(f"/proc/{pid}/task/{thread.id}/comm")
        name = "main" if thread.id == pid else comm.read_text().strip()
        found[name] = found.get(name, 0.0) + thread.user_time + thread.system_time
    return found


def _profiler() -> str:
    found = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    if found is None:
        raise StackError("py-spy is not installed; `make setup` installs it into .venv.")
    return found


def _profile_once(
    settings: Settings, n: int, out: Path, result: BenchResult, servers: dict[str, int]
) -> None:
    raw = out / "stacks.txt"
    command = [_profiler(), "record", "--format", "raw", "--function", "--nonblocking"]
    command += ["--rate", str(_SAMPLES_PER_S), "--output", str(raw)]
    with BenchStreamer(settings, out / "streamer.log") as streamer:
        process = streamer.process
        wait_for_url(streamer.metrics_url, process)
        streamer.wait_for_metric("decided_total", 1)
        first, before_s = streamer.metric("decided_total"), _thread_cpu_s(process.pid)
        clock, start_s = CpuClock(servers), time.monotonic()
        with (out / "py-spy.log").open("wb") as log:
            profiler = subprocess.Popen(
                [*command, "--pid", str(process.pid)], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            wait_for_decided(streamer.metrics_url, process, n)
            after_s, servers_used_s = _thread_cpu_s(process.pid), clock.used_s()
            seconds = time.monotonic() - start_s
            profiler.send_signal(signal.SIGINT)
            profiler.wait(_END_S)
        finally:
            profiler.kill()
        process.stop()
    if not raw.exists():
        raise StackError(f"py-spy wrote no profile:\n{(out / 'py-spy.log').read_text()}")
    decided = n - first
    result.add("wall time", seconds / decided * 1e6, "µs per tx")
    for name, used_s in servers_used_s.items():
        result.add(f"process {name}", used_s / decided * 1e6, "µs per tx")
    result.add(
        "process streamer",
        (sum(after_s.values()) - sum(before_s.values())) / decided * 1e6,
        "µs per tx",
    )
    used = {name: s - before_s.get(name, 0.0) for name, s in after_s.items()}
    for name, cpu_s in sorted(used.items(), key=lambda item: -item[1]):
        if cpu_s >= _LEAST_SHARE * sum(used.values()):
            result.add(f"thread {name}", cpu_s / decided * 1e6, "µs per tx")
    main_us = used["main"] / decided * 1e6
    for step, share in steps_of(raw.read_text().splitlines()).items():
        result.add(f"main: {step}", share * main_us, "µs per tx")


def bench_profile(
    table: pa.Table, repository: Path, out: Path, *, on_step: Callable[[str], None]
) -> BenchResult:
    """Profile one run on a fresh embedded stack; the stacks are left in `out`.

    Args:
        table: Transactions in event-time order.
        repository: Model repository with a live version.
        out: Folder for the stack, the logs and the profile.
        on_step: Told what happens now.

    Raises:
        StackError: A part failed, or the profiler did.
    """
    n = table.num_rows
    result = BenchResult(SCENARIO, {"transactions": n, "partitions": 4})
    out.mkdir(parents=True, exist_ok=True)
    with LocalStack(out / "stack", model_repository=repository, fresh=True) as stack:
        base = stack.settings()
        ensure_topics(base)
        on_step("fill the topic")
        producer = ReplayProducer(base)
        producer.run(table.to_batches())
        producer.close()
        on_step("compile the kernels")
        stream_backlog(own_outputs(base, "warm", database=1), n, out / "warm.log")
        on_step("profile")
        _profile_once(own_outputs(base, "profile", database=2), n, out, result, stack.pids)
    return result
