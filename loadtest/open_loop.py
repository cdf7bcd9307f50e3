"""`gateway-open-loop`, `gateway-explained`: latency at a constant arrival rate, judged.

The latency counts from when each request was due (see `locustfile`). What it does not show: the
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.models import live_version, load_version
from flagger.settings import Settings
from loadtest.api_key import API_KEY_VARIABLE, make_key
from loadtest.bench_result import BenchResult
from loadtest.cpu_clock import CpuClock, others_cpu_s
from loadtest.flag_more import flag_more
from loadtest.observe import metric_values
from loadtest.own_models import copy_repository
from loadtest.payments import CUSTOMERS, TERMINALS
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.recording import Recording
from loadtest.slo import EXPLAINED_SCENARIO, SCENARIO, Judgement, add_figures, judge
from streamer.topics import ensure_topics
from train.simulate import SimulationConfig, simulate

__all__ = ["LoadPlan", "Target", "load", "run_locust", "started"]

WARM_UP_S = 10.0
"""A broker that has just started is busy compiling itself: it needs a core more than later."""
_TURN_S = 0.5
"""Time between two requests of one connection; far more than an answer takes."""
_EDGES_S = 12.0
"""Most that Locust needs to start and to end."""
_LOCUST_LIMIT_S = 60.0
"""Most that Locust may need beside the run itself."""
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
_TAIL_LINES = 15


@dataclass(frozen=True)
class LoadPlan:
    """What to run.

    Attributes:
        out: Folder for everything the run leaves.
        rate_per_s: Requests per second.
        duration_s: Measured seconds of each run, after a warm-up.
        repeats: Runs.
        stream_rate_per_s: Transactions per second through Kafka meanwhile; 0: none.
        flagged_share: Share of payments to flag, see `flag_more`; 0: what the model flags.
    """

    out: Path
    rate_per_s: float
    duration_s: float
    repeats: int = 1
    stream_rate_per_s: float = 0.0
    flagged_share: float = 0.0

    @property
    def scenario(self) -> str:
        """Its permanent id."""
        return EXPLAINED_SCENARIO if self.flagged_share else SCENARIO

    @property
    def whole_s(self) -> float:
        """Most seconds that all runs take together."""
        return self.repeats * (WARM_UP_S + self.duration_s + _EDGES_S)


@dataclass(frozen=True)
class Target:
    """A gateway to ask.

    Attributes:
        url: Where it listens, http://host:port.
        streamer_metrics_url: Metrics page of the streamer behind it; "" if it is not known.
        triton_url: host:port of the Triton behind it; "" if it is not known.
        api_key: Key for the gateway; "": none.
        pids: Name -> process id of the parts that run on this machine.
    """

    url: str
    streamer_metrics_url: str = ""
    triton_url: str = ""
    api_key: str = field(default="", repr=False)
    pids: dict[str, int] = field(default_factory=dict)

    def decided(self) -> float:
        """Return how many decisions the streamer has written; 0 if it is not known."""
        if not self.streamer_metrics_url:
            return 0.0
        name = "flagger_streamer_decided_total"
        return sum(metric_values(self.streamer_metrics_url, name, "decision").values())


@contextlib.contextmanager
def started(
    plan: LoadPlan, repository: Path, on_step: Callable[[str], None] = lambda _: None
) -> Iterator[Target]:
    """Run a fresh embedded stack, a streamer, a gateway and, if wanted, traffic through Kafka.

    Always embedded, whatever addresses are set: made-up payments belong on nobody's broker.

    Raises:
        ConfigurationError: The repository has no usable live version.
        StackError: A part did not start.
    """
    load_version(repository, live_version(repository))
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.flagged_share:
        repository = copy_repository(repository, plan.out / "model_repository")
    home = plan.out / "stack"
    with (
        LocalStack(home, model_repository=repository, fresh=True, on_step=on_step) as stack,
        contextlib.ExitStack() as processes,
    ):
        settings = stack.settings(Settings())
        ensure_topics(settings)
        key, variables = make_key(plan.out)
        environment = environment_of(settings, variables)

        def start(*arguments: str) -> FlaggerProcess:
            log = plan.out / f"{arguments[0]}.log"
            log.unlink(missing_ok=True)
            process = FlaggerProcess(list(arguments), environment, log)
            processes.callback(process.kill)
            return process

        on_step("start streamer and gateway")
        port, metrics_port = free_ports(2)
        streamer = start("stream", "--metrics-port", str(metrics_port))
        gateway = start("gateway", "--port", str(port))
        target = Target(
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{metrics_port}/metrics",
            stack.addresses.triton_url,
            key,
            {**stack.pids, "streamer": streamer.pid, "gateway": gateway.pid},
        )
        wait_for_url(target.streamer_metrics_url, streamer)
        wait_for_url(f"{target.url}/readyz", gateway)
        if plan.flagged_share:
            on_step(f"lower the threshold until {plan.flagged_share:.0%} are flagged")
            flag_more(repository, port, key, plan.flagged_share)
        if plan.stream_rate_per_s:
            on_step(f"start {plan.stream_rate_per_s:,.0f} transactions/s through Kafka")
            rate = f"{plan.stream_rate_per_s:g}"
            file = _stream_file(plan)
            producer = start("produce", "--data", str(file), "--rate", rate, "--no-labels")
            target.pids["producer"] = producer.pid
            _wait_until(lambda: target.decided() > 0, producer)
        yield target
        for process in (gateway, streamer):
            process.require_running()


def _stream_file(plan: LoadPlan) -> Path:
    """Write simulated transactions that happen from now on, at the wanted rate."""
    n = math.ceil(plan.stream_rate_per_s * plan.whole_s)
    days = math.ceil(n / CUSTOMERS) + 1
    parts: list[pa.RecordBatch] = []
    for batch in simulate(SimulationConfig(CUSTOMERS, TERMINALS, days, seed=11)):
        parts.append(batch)
        if sum(map(len, parts)) >= n:
            break
    table = pa.Table.from_batches(parts).slice(0, n)
    offsets_ms = np.arange(len(table)) * (1000 / plan.stream_rate_per_s)
    times_ms = pa.array(time.time_ns() // 1_000_000 + offsets_ms.astype(np.int64))
    column = table.schema.get_field_index("event_time")
    field = table.schema.field(column)
    file = plan.out / "stream.parquet"
    pq.write_table(table.set_column(column, field, times_ms.cast(field.type)), file)
    return file


def _wait_until(is_true: Callable[[], bool], process: FlaggerProcess) -> None:
    end_s = time.monotonic() + 60
    while not is_true():
        process.require_running()
        if time.monotonic() > end_s:
            raise StackError(f"Nothing came of `flagger {process.name}` in a minute.")
        time.sleep(0.1)


def load(
    target: Target, plan: LoadPlan, on_step: Callable[[str], None] = lambda _: None
) -> tuple[BenchResult, list[Judgement]]:
    """Load a gateway and judge each run.

    Returns:
        The figures, also written to `<out>/<scenario>.json` with the verdict, and one judgement
        for each run.

    Raises:
        StackError: Locust did not run.
    """
    settings: dict[str, Any] = {
        "rate_per_s": plan.rate_per_s,
        "duration_s": plan.duration_s,
        "warm_up_s": WARM_UP_S,
        "stream_rate_per_s": plan.stream_rate_per_s,
        "embedded": bool(target.streamer_metrics_url),
    }
    if plan.flagged_share:
        settings["flagged_share"] = plan.flagged_share
    result = BenchResult(plan.scenario, settings)
    judgements = []
    for run in range(plan.repeats):
        on_step(f"run {run + 1} of {plan.repeats}: {plan.rate_per_s:,.0f} requests/s")
        before, start_s, cpu_s = target.decided(), time.monotonic(), others_cpu_s()
        clock = CpuClock(target.pids)
        recording = run_locust(target, plan, run)
        cores = clock.cores()
        elapsed_s = time.monotonic() - start_s
        streamed_per_s = (target.decided() - before) / elapsed_s
        add_figures(result, recording)
        for part, busy in cores.items():
            result.add(f"CPU {part}", busy, "cores")
        share, others_cores = 1.0, 0.0
        if target.streamer_metrics_url:  # elsewhere the gateway itself would be an other program
            others_cores = max(others_cpu_s() - cpu_s, 0.0) / elapsed_s
            result.add("other programs", others_cores, "cores")
        if plan.stream_rate_per_s:
            result.add("streamer decided", streamed_per_s, "tx/s")
            share = streamed_per_s / plan.stream_rate_per_s
        judgements.append(judge(recording, streamed_share=share, others_cores=others_cores))
    settings["verdicts"] = [j.verdict for j in judgements]
    settings["reasons"] = [reason for j in judgements for reason in j.reasons]
    result.write(plan.out)
    return result, judgements


def run_locust(target: Target, plan: LoadPlan, run: int) -> Recording:
    """Run Locust in a process of its own: it patches the whole process that it lives in.

    Args:
        target: Whom it asks.
        plan: How fast and how long.
        run: Number of the run, for the name of its file.

    Raises:
        StackError: It left no recording.
    """
    plan.out.mkdir(parents=True, exist_ok=True)
    users = max(math.ceil(plan.rate_per_s * _TURN_S), 1)
    file, log = plan.out / f"recording-{run}.json", plan.out / "locust.log"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "locust", "-f", str(_LOCUSTFILE), "--headless"]
    command += ["--host", target.url, "--users", str(users), "--spawn-rate", str(users)]
    command += ["--exit-code-on-error", "0", "--only-summary"]
    command += ["--arrival-rate", str(plan.rate_per_s)]
    command += ["--warm-up", str(WARM_UP_S), "--measure", str(plan.duration_s)]
    command += ["--busy-share", str(plan.flagged_share), "--recording", str(file)]
    limit_s = WARM_UP_S + plan.duration_s + _LOCUST_LIMIT_S
    with log.open("wb") as out, contextlib.suppress(subprocess.TimeoutExpired):
        environment = {**os.environ, API_KEY_VARIABLE: target.api_key}
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
