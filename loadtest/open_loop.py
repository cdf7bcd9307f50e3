"""Load at given arrival rates, judged: `gateway-open-loop` and its like.

The latency counts from when each request was due (see `open_loop_user`). What it does not show: the
network between caller and gateway, and a gateway that has its cores to itself; generator, gateway,
streamer and the embedded stack share this machine unless --url says otherwise. `gateway-explained`
flags far more payments than the model's threshold would, to show what a review takes beside an
approval; each also gives the other the load of its explanation.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from flagger.errors import StackError
from flagger.features import FEATURE_NAMES
from flagger.models import live_version
from loadtest import load_stack
from loadtest.api_key import API_KEY_VARIABLE
from loadtest.arrivals import CONSTANT
from loadtest.bench_result import BenchResult
from loadtest.load_report import write_load_report
from loadtest.load_stack import GATEWAY, IN_PROCESS, LoadPlan, Target
from loadtest.recording import Recording
from loadtest.slo import Judgement, add_decisions, add_latency, judge
from loadtest.usage import CpuClock, memory_mib, others_cpu_s

__all__ = ["load", "run_locust"]

_TURN_S = 0.5
"""Time between two requests of one connection; far more than an answer takes."""
_LOCUST_LIMIT_S = 60.0
"""Most that Locust may need beside the run itself."""
_LOCUSTFILES = {
    GATEWAY: "locustfile.py",
    "kafka": "locust_kafka.py",
    "triton-fil": "locust_triton.py",
    "triton-onnx": "locust_triton.py",
    IN_PROCESS: "locust_in_process.py",
}
_MODELS = {"triton-fil": "fraud_fil", "triton-onnx": "fraud_onnx"}
_TAIL_LINES = 15


def load(
    target: Target, plan: LoadPlan, on_step: Callable[[str], None] = lambda _: None
) -> tuple[BenchResult, list[Judgement]]:
    """Ask whom the plan names, one after the other, and judge each run.

    Returns:
        The figures, also written to `<out>/<scenario>.json` with the verdict and drawn in
        `<scenario>.html`, and one judgement for each run.

    Raises:
        StackError: Locust did not run.
    """
    result = BenchResult(plan.scenario, _settings(target, plan))
    recordings: dict[str, Recording] = {}
    judgements = []
    for run in range(plan.repeats):
        for asked in plan.asked:
            of = f" of {asked}" if len(plan.asked) > 1 else ""
            on_step(f"run {run + 1} of {plan.repeats}{of}: {plan.rate_per_s:,.0f} requests/s")
            recording, judgement = _measure(target, plan, asked, run, result)
            recordings[f"{asked}, run {run + 1}"] = recording
            judgements.append(judgement)
    result.settings["verdicts"] = [j.verdict for j in judgements]
    result.settings["reasons"] = [reason for j in judgements for reason in j.reasons]
    result.write(plan.out)
    write_load_report(plan.out, result, recordings)
    return result, judgements


def _settings(target: Target, plan: LoadPlan) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "rate_per_s": plan.rate_per_s,
        "duration_s": plan.duration_s,
        "warm_up_s": load_stack.WARM_UP_S,
        "stream_rate_per_s": plan.stream_rate_per_s,
        "embedded": bool(target.streamer_metrics_url),
    }
    if plan.flagged_share:
        settings["flagged_share"] = plan.flagged_share
    if plan.asked != (GATEWAY,):
        settings["asked"] = list(plan.asked)
    if plan.shape != CONSTANT:
        settings["shape"] = plan.shape
    if plan.gateways > 1:
        settings["gateways"] = plan.gateways
    return settings


def _measure(
    target: Target, plan: LoadPlan, asked: str, run: int, result: BenchResult
) -> tuple[Recording, Judgement]:
    """Ask one of them once; its figures have its name in front if there are others."""
    before, start_s, cpu_s = target.decided(), time.monotonic(), others_cpu_s()
    clock = CpuClock(target.pids)
    growing = {p: target.pids[p] for p in (GATEWAY, "streamer") if p in target.pids}
    memory = {part: memory_mib(pid) for part, pid in growing.items()}
    recording = run_locust(target, plan, run, asked)
    cores, elapsed_s = clock.cores(), time.monotonic() - start_s
    streamed_per_s = (target.decided() - before) / elapsed_s
    prefix = f"{asked} " if len(plan.asked) > 1 else ""
    add_latency(result, recording, prefix)
    if plan.asked == (GATEWAY,):
        add_decisions(result, recording)
    for part, busy in cores.items():
        result.add(f"{prefix}CPU {part}", busy, "cores")
    for part, pid in growing.items():
        result.add(f"{prefix}memory {part}, grown", memory_mib(pid) - memory[part], "MiB")
    share, others_cores = 1.0, 0.0
    if target.streamer_metrics_url:  # elsewhere the gateway itself would be an other program
        others_cores = max(others_cpu_s() - cpu_s, 0.0) / elapsed_s
        result.add(f"{prefix}other programs", others_cores, "cores")
    if plan.stream_rate_per_s:
        result.add(f"{prefix}streamer decided", streamed_per_s, "tx/s")
        share = streamed_per_s / plan.stream_rate_per_s
    judgement = judge(recording, streamed_share=share, others_cores=others_cores)
    reasons = tuple(f"{prefix}{reason}" for reason in judgement.reasons)
    return recording, Judgement(judgement.verdict, reasons)


def run_locust(target: Target, plan: LoadPlan, run: int, asked: str = GATEWAY) -> Recording:
    """Run Locust in a process of its own: it patches the whole process that it lives in.

    Args:
        target: Where everybody is.
        plan: How fast and how long.
        run: Number of the run, for the name of its file.
        asked: Whom it asks.

    Raises:
        StackError: It left no recording.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    users = max(math.ceil(plan.rate_per_s * _TURN_S), 1)
    name = "" if asked == GATEWAY else f"{asked}-"
    file, log = plan.out / f"recording-{name}{run}.json", plan.out / "locust.log"
    file.unlink(missing_ok=True)
    locustfile = Path(__file__).with_name(_LOCUSTFILES[asked])
    command = [sys.executable, "-m", "locust", "-f", str(locustfile), "--headless"]
    command += ["--host", _address(target, asked), "--users", str(users)]
    command += ["--spawn-rate", str(users)]
    command += ["--exit-code-on-error", "0", "--only-summary"]
    command += ["--arrival-rate", str(plan.rate_per_s), "--shape", plan.shape]
    command += ["--warm-up", str(load_stack.WARM_UP_S), "--measure", str(plan.duration_s)]
    command += ["--busy-share", str(plan.flagged_share), "--recording", str(file)]
    if asked in (*_MODELS, IN_PROCESS):
        command += ["--columns", str(len(FEATURE_NAMES))]
    if asked in _MODELS:
        repository = Path(target.environment["FLAGGER_MODEL_REPOSITORY"])
        command += ["--model", f"{_MODELS[asked]}:{live_version(repository)}"]
    limit_s = load_stack.WARM_UP_S + plan.duration_s + _LOCUST_LIMIT_S
    with log.open("wb") as out, contextlib.suppress(subprocess.TimeoutExpired):
        environment = {**os.environ, **target.environment, API_KEY_VARIABLE: target.api_key}
        subprocess.run(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            check=False,
            env=environment,
        )
    if not file.exists():
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise StackError(f"Locust left no recording. {log} ends with:\n{tail}")
    return msgspec.json.decode(file.read_bytes(), type=Recording)


def _address(target: Target, asked: str) -> str:
    """Return what Locust calls a host; Kafka's is in the environment."""
    if asked in _MODELS:
        return target.triton_url
    return {GATEWAY: ",".join(target.urls), IN_PROCESS: target.in_process_url}.get(asked, "")
