"""The main job, end to end, on real Kafka, Triton and Valkey; see `flagger demo --help`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.errors import StackError
from flagger.models import load_version
from flagger.settings import Settings, load_settings
from flagger.wire.messages import Decision
from loadtest.api_key import make_key
from loadtest.observe import DecisionFollower, GatewayAnswer, ask_gateway, wait_for_decided
from loadtest.offline import LogReplay, Verdict, compare, replay_log
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.topic_reader import Records, read_topic
from streamer.produce import encode_transactions
from streamer.topics import ensure_topics
from train.fit import predict
from train.metrics import evaluate
from train.pipeline import TrainingPlan, TrainingResult, train_model
from train.simulate import SimulationConfig, simulate
from train.sources import ColumnMap, read_sorted

__all__ = ["DemoPlan", "DemoResult", "run_demo"]

GATEWAY_REQUESTS = 200
_PRODUCE_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class DemoPlan:
    """What to run.

    Attributes:
        out: Folder for everything the run leaves.
        data: File of transactions with outcomes; None: simulate.
        columns: How its layout differs.
        live: Transactions at the end of the data that are sent at `live_rate_per_s` while the
            gateway is asked; all before them go in as fast as they can.
        live_rate_per_s: Transactions per second of the live part.
        simulation: What to simulate without a file.
    """

    out: Path
    data: Path | None = None
    columns: ColumnMap = field(default_factory=ColumnMap)
    live: int = 30_000
    live_rate_per_s: float = 2_000.0
    simulation: SimulationConfig = field(
        default_factory=lambda: SimulationConfig(customers=2_000, terminals=4_000, days=75)
    )


@dataclass
class DemoResult:
    """What came out; the raw material of the table, the summary and the report."""

    plan: DemoPlan
    seconds: dict[str, float] = field(default_factory=dict)
    training: TrainingResult | None = None
    history: list[tuple[float, float]] = field(default_factory=list)
    sent: int = 0
    answers: list[GatewayAnswer] = field(default_factory=list)
    live_latencies_ms: list[float] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    alerts: int = 0
    dead_letters: int = 0
    replay: LogReplay | None = None
    verdict: Verdict = field(default_factory=Verdict)
    measures: dict[str, Any] = field(default_factory=dict)

    @property
    def transactions_per_s(self) -> float:
        """Decisions per second over the part that was sent as fast as possible."""
        (start_s, first), (end_s, last) = self.history[0], self.history[-1]
        return (last - first) / (end_s - start_s) if end_s > start_s else 0.0


@contextmanager
def _step(result: DemoResult, on_step: Callable[[str], None], name: str) -> Iterator[None]:
    on_step(name)
    start_s = time.monotonic()
    yield
    result.seconds[name] = time.monotonic() - start_s


def _prepare(plan: DemoPlan) -> tuple[Path, pa.Table, pa.Table, pa.Table]:
    """Return the data file, and the table's parts: history, live, for the gateway."""
    data = plan.data
    if data is None:
        data = plan.out / "transactions.parquet"
        pq.write_table(pa.Table.from_batches(simulate(plan.simulation)), data)
    table = read_sorted(data, plan.columns)
    live = min(plan.live, table.num_rows // 2)
    tail = table.slice(table.num_rows - live)
    chosen = np.zeros(live, dtype=np.bool_)
    chosen[np.linspace(0, live - 1, min(GATEWAY_REQUESTS, live), dtype=np.intp)] = True
    return (
        data,
        table.slice(0, table.num_rows - live),
        tail.filter(pa.array(~chosen)),
        tail.filter(pa.array(chosen)),
    )


def _train_and_export(
    plan: DemoPlan, data: Path, settings: Settings, on_step: Callable[[str], None]
) -> TrainingResult:
    training = train_model(
        data,
        plan.out / "training",
        TrainingPlan(columns=plan.columns),
        on_step=lambda name: on_step(f"train: {name}"),
    )
    on_step("export and prove on Triton")
    export_model(training.directory, settings.model_repository, triton_url=settings.triton_url)
    return training


def run_demo(plan: DemoPlan, on_step: Callable[[str], None]) -> DemoResult:
    """Run everything and return what came out; `on_step` is told what happens now.

    Raises:
        FlaggerError: A part did not work; what failed in the comparison is in `verdict` instead.
    """
    result = DemoResult(plan)
    plan.out.mkdir(parents=True, exist_ok=True)
    repository = plan.out / "model_repository"
    repository.mkdir(exist_ok=True)
    with ExitStack() as stack:
        local = LocalStack(plan.out / "stack", model_repository=repository, fresh=True)
        stack.callback(local.stop)
        starting = stack.enter_context(ThreadPoolExecutor(1)).submit(local.start)
        with _step(result, on_step, "data"):
            data, history, live, asked = _prepare(plan)
        with _step(result, on_step, "start Kafka, Triton and Valkey"):
            starting.result()
        addresses = local.addresses
        settings = load_settings().model_copy(
            update={
                "kafka_bootstrap_servers": addresses.kafka_bootstrap_servers,
                "triton_url": addresses.triton_url,
                "valkey_url": addresses.valkey_url,
                "model_repository": repository,
            }
        )
        with _step(result, on_step, "train and export"):
            result.training = _train_and_export(plan, data, settings, on_step)
        _stream(result, settings, (history, live, asked), on_step)
        with _step(result, on_step, "verify against the offline replay"):
            _verify(result, settings, data)
        on_step("stop")
    return result


def _stream(
    result: DemoResult,
    settings: Settings,
    parts: tuple[pa.Table, pa.Table, pa.Table],
    on_step: Callable[[str], None],
) -> None:
    """Start streamer and gateway, send everything, and stop them again."""
    plan = result.plan
    history, live, asked = parts
    ensure_topics(settings)
    key, variables = make_key(plan.out)
    environment = environment_of(settings, variables)
    metrics_port, port = free_ports(2)
    metrics = f"http://127.0.0.1:{metrics_port}/metrics"
    bodies = encode_transactions(asked.combine_chunks().to_batches()[0])

    def command(*arguments: str) -> FlaggerProcess:
        process = FlaggerProcess(list(arguments), environment, plan.out / f"{arguments[0]}.log")
        processes.callback(process.kill)
        return process

    def produce(name: str, rows: pa.Table, *pace: str) -> FlaggerProcess:
        file = plan.out / f"{name}.parquet"
        pq.write_table(rows, file)
        return command("produce", "--data", str(file), *pace)

    with ExitStack() as processes:
        with _step(result, on_step, "start streamer and gateway"):
            streamer = command("stream", "--metrics-port", str(metrics_port))
            gateway = command("gateway", "--port", str(port))
            wait_for_url(metrics, streamer)
            wait_for_url(f"http://127.0.0.1:{port}/readyz", gateway)
        with _step(result, on_step, f"stream {history.num_rows:,} as fast as possible"):
            producer = produce("history", history)
            result.history = wait_for_decided(metrics, streamer, history.num_rows)
            producer.wait(_PRODUCE_TIMEOUT_S)
        rate = plan.live_rate_per_s
        what = f"stream {live.num_rows:,} at {rate:,.0f}/s and ask the gateway"
        with _step(result, on_step, what), DecisionFollower(settings) as follower:
            producer = produce("live", live, "--rate", f"{rate:g}")
            # At the stream's own pace: payments at the gateway that are days ahead of the stream's
            # move the terminals' windows on before the stream has used them.
            first, each = history.num_rows + 1, live.num_rows / asked.num_rows
            result.answers = ask_gateway(
                port,
                bodies,
                key,
                wait_for_turn=lambda i: wait_for_decided(metrics, streamer, first + int(each * i)),
            )
            producer.wait(_PRODUCE_TIMEOUT_S)
            result.sent = history.num_rows + live.num_rows + asked.num_rows
            wait_for_decided(metrics, streamer, result.sent)
            time.sleep(0.5)  # the last commit reaches the follower
        result.live_latencies_ms = _streamed_latencies_ms(follower.records, settings.streamer_model)
        gateway.stop()
        streamer.stop()


def _streamed_latencies_ms(records: Records, model: str) -> list[float]:
    """Return event-to-read times of the decisions that the streamer made itself."""
    mark = f'"model":"{model}"'.encode()
    mine = np.array([mark in value for value in records.values], dtype=np.bool_)
    latencies: list[float] = (records.read_ms - records.timestamp_ms)[mine].tolist()
    return latencies


def _verify(result: DemoResult, settings: Settings, data: Path) -> None:
    """Read back what is in Kafka and hold it against the offline replay of the same log."""
    training = result.training
    if training is None:
        raise StackError("There is no trained model to verify with.")
    decisions = read_topic(settings, settings.decisions_topic)
    decoder = msgspec.json.Decoder(Decision)
    result.decisions = [decoder.decode(value) for value in decisions.values]
    result.alerts = len(read_topic(settings, settings.alerts_topic))
    result.dead_letters = len(read_topic(settings, settings.dead_letter_topic))
    log = read_topic(settings, settings.transactions_topic)
    labels = read_topic(settings, settings.labels_topic)
    version = result.decisions[0].model_version if result.decisions else "1"
    contract = load_version(settings.model_repository, version).contract
    result.replay = replay_log(log, labels, contract)
    offline = predict(training.booster, result.replay.rows)
    result.verdict = compare(result.replay, offline, result.decisions, result.dead_letters)
    result.measures = _measure(result, training, read_sorted(data, result.plan.columns))


def _measure(result: DemoResult, training: TrainingResult, table: pa.Table) -> dict[str, Any]:
    """Return the usual measures over the streamed decisions of the test window."""
    times_ms = table["event_time"].cast(pa.int64()).to_numpy()
    test = np.flatnonzero(training.windows.masks(times_ms)["test"])
    scores = {d.transaction_id: d.score for d in result.decisions if d.score is not None}
    rows = table.select(["transaction_id", "customer_id", "is_fraud"]).take(test).to_pylist()
    known = [(row, t) for row, t in zip(rows, test.tolist(), strict=True)
             if row["transaction_id"] in scores and row["is_fraud"] is not None]  # fmt: skip
    return evaluate(
        np.array([scores[row["transaction_id"]] for row, _ in known], dtype=np.float32),
        np.array([row["is_fraud"] for row, _ in known], dtype=np.bool_),
        np.array([row["customer_id"] for row, _ in known], dtype=object),
        times_ms[[t for _, t in known]] // 86_400_000,
        training.policy,
    )
