"""What a load run needs: a plan, and somebody to ask, with a stack of its own around them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.models import live_version, load_version, version_folder
from flagger.settings import Settings
from loadtest.api_key import make_key
from loadtest.arrivals import CONSTANT
from loadtest.bench_streamer import own_topics
from loadtest.flag_more import flag_more
from loadtest.observe import metric_values
from loadtest.own_models import copy_repository
from loadtest.payments import CUSTOMERS, TERMINALS
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.slo import EXPLAINED_SCENARIO, SCENARIO
from train.simulate import SimulationConfig, simulate

__all__ = ["ASKED", "GATEWAY", "LoadPlan", "Target", "started"]

WARM_UP_S = 10.0
"""A broker that has just started is busy compiling itself: it needs a core more than later."""
_EDGES_S = 12.0
"""Most that Locust needs to start and to end."""
GATEWAY, IN_PROCESS = "gateway", "in-process"
ASKED = (GATEWAY, "kafka", "triton-fil", "triton-onnx", IN_PROCESS)
"""Whom a run may ask: the two doors, Triton's two models without anything around them, and the same
model in FastAPI's own process, what a payment service would write first."""


@dataclass(frozen=True)
class LoadPlan:
    """What to run.

    Attributes:
        out: Folder for everything the run leaves.
        rate_per_s: Requests per second, the highest if the shape changes it.
        duration_s: Measured seconds of each run, after a warm-up.
        repeats: Runs.
        stream_rate_per_s: Transactions per second through Kafka meanwhile; 0: none.
        flagged_share: Share of payments to flag, see `flag_more`; 0: what the model flags.
        asked: Whom, some of `ASKED`; one after the other on the same stack.
        shape: Of the rate over time, one of `loadtest.arrivals.SHAPES`.
        gateways: Processes that share the requests.
    """

    out: Path
    rate_per_s: float
    duration_s: float
    repeats: int = 1
    stream_rate_per_s: float = 0.0
    flagged_share: float = 0.0
    asked: tuple[str, ...] = (GATEWAY,)
    shape: str = CONSTANT
    gateways: int = 1

    @property
    def scenario(self) -> str:
        """Its permanent id."""
        if self.flagged_share:
            return EXPLAINED_SCENARIO
        if len(self.asked) > 1:
            return f"loadtest-compared-{self.rate_per_s:.0f}"
        if self.shape != CONSTANT:
            return f"{self.asked[0]}-{self.shape}"
        return SCENARIO if self.asked == (GATEWAY,) else f"{self.asked[0]}-open-loop"

    @property
    def whole_s(self) -> float:
        """Most seconds that all runs take together."""
        return self.repeats * len(self.asked) * (WARM_UP_S + self.duration_s + _EDGES_S)


@dataclass(frozen=True)
class Target:
    """A gateway to ask.

    Attributes:
        urls: Where gateways listen, http://host:port; they share the requests.
        streamer_metrics_url: Metrics page of the streamer behind it; "" if it is not known.
        triton_url: host:port of the Triton behind it; "" if it is not known.
        api_key: Key for the gateway; "": none.
        pids: Name -> process id of the parts that run on this machine.
        in_process_url: Of FastAPI with the model in its process; "" if it does not run.
        environment: Variables under which a process finds the same servers, topics and models.
    """

    urls: tuple[str, ...]
    streamer_metrics_url: str = ""
    triton_url: str = ""
    api_key: str = field(default="", repr=False)
    pids: dict[str, int] = field(default_factory=dict)
    in_process_url: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def url(self) -> str:
        """Where the first gateway listens."""
        return self.urls[0]

    @property
    def port(self) -> int:
        """The first gateway's port."""
        return int(self.url.rpartition(":")[2])

    def decided(self) -> float:
        """Return how many decisions the streamer has written; 0 if it is not known."""
        if not self.streamer_metrics_url:
            return 0.0
        name = "flagger_streamer_decided_total"
        return sum(metric_values(self.streamer_metrics_url, name, "decision").values())


@contextlib.contextmanager
def started(
    plan: LoadPlan,
    repository: Path,
    on_step: Callable[[str], None] = lambda _: None,
    servers: Settings | None = None,
) -> Iterator[Target]:
    """Run a fresh embedded stack, a streamer, a gateway and, if wanted, traffic through Kafka.

    Embedded, whatever addresses are set in the environment: made-up payments belong on nobody's
    broker. `servers` has addresses to use all the same.

    Raises:
        ConfigurationError: The repository has no usable live version.
        StackError: A part did not start, or has ended meanwhile.
    """
    load_version(repository, live_version(repository))
    plan.out.mkdir(parents=True, exist_ok=True)
    if plan.flagged_share:
        repository = copy_repository(repository, plan.out / "model_repository")
    home = plan.out / "stack"
    with (
        LocalStack(
            home, model_repository=repository, settings=servers, fresh=True, on_step=on_step
        ) as stack,
        contextlib.ExitStack() as at_end,
    ):
        settings = own_topics(stack.settings(Settings()), plan.scenario)
        key, variables = make_key(plan.out)
        parts = _Parts(plan.out, environment_of(settings, variables))
        at_end.callback(parts.kill)
        on_step("start streamer and gateway")
        (metrics_port,) = free_ports(1)
        streamer = parts.start("streamer", "stream", "--metrics-port", str(metrics_port))
        target = Target(
            _start_gateways(parts, plan.gateways),
            f"http://127.0.0.1:{metrics_port}/metrics",
            stack.addresses.triton_url,
            key,
            in_process_url=_start_in_process(parts, settings) if IN_PROCESS in plan.asked else "",
            environment=parts.environment,
        )
        wait_for_url(target.streamer_metrics_url, streamer)
        if plan.flagged_share:
            on_step(f"lower the threshold until {plan.flagged_share:.0%} are flagged")
            flag_more(repository, target.port, key, plan.flagged_share)
        if plan.stream_rate_per_s:
            on_step(f"start {plan.stream_rate_per_s:,.0f} transactions/s through Kafka")
            options = ("--data", str(_stream_file(plan)), "--rate", f"{plan.stream_rate_per_s:g}")
            producer = parts.start("producer", "produce", *options, "--no-labels")
            _wait_until(lambda: target.decided() > 0, producer)
        target.pids.update(stack.pids | parts.pids)
        yield target
        stack.require_running()  # first: the parts wait for a server that is gone
        parts.require_running()


class _Parts:
    """Programs of ours under the same variables, each with a name, which its log has, too."""

    def __init__(self, out: Path, environment: dict[str, str]) -> None:
        self._out = out
        self.environment = environment
        self._processes: dict[str, FlaggerProcess] = {}

    @property
    def pids(self) -> dict[str, int]:
        return {name: process.pid for name, process in self._processes.items()}

    def start(self, name: str, *arguments: str, module: str = "flagger") -> FlaggerProcess:
        log = self._out / f"{name}.log"
        log.unlink(missing_ok=True)
        process = FlaggerProcess(list(arguments), self.environment, log, module=module)
        self._processes[name] = process
        return process

    def require_running(self) -> None:
        """Raise StackError if one of those that never end by themselves has ended."""
        for name, process in self._processes.items():
            if name != "producer":
                process.require_running()

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()


def _start_gateways(parts: _Parts, count: int) -> tuple[str, ...]:
    urls = []
    for i, port in enumerate(free_ports(count)):
        name = f"{GATEWAY}-{i + 1}" if i else GATEWAY
        gateway = parts.start(name, "gateway", "--port", str(port))
        wait_for_url(f"http://127.0.0.1:{port}/readyz", gateway)
        urls.append(f"http://127.0.0.1:{port}")
    return tuple(urls)


def _start_in_process(parts: _Parts, settings: Settings) -> str:
    repository = settings.model_repository
    model_file = version_folder(repository, live_version(repository)) / "xgboost.json"
    (port,) = free_ports(1)
    service = parts.start(
        IN_PROCESS, str(model_file), "--port", str(port), module="loadtest.rival_service"
    )
    wait_for_url(f"http://127.0.0.1:{port}/ready", service)
    return f"http://127.0.0.1:{port}"


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
