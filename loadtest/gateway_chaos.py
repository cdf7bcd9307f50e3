"""Random kills under two gateways and a streamer, and the proof that every answer stays true.

What is killed or stopped, and when, is the seed's; how far everything had come is the machine's.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from deploy.local.server import free_ports
from flagger.wire.messages import Decision
from loadtest.crash_services import Services
from loadtest.crash_world import CrashWorld
from loadtest.payers import Payers, Payment, Told
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url

__all__ = ["GatewayChaosPlan", "GatewayChaosResult", "run_gateway_chaos"]

KINDS = {
    "gateway killed": 30,
    "gateway stopped for a while": 30,
    "valkey stopped for a while": 15,
    "streamer killed": 10,
    "triton killed": 5,
    "kafka killed": 5,
    "valkey killed": 5,
}
"""What is done, and how often in a hundred."""
GATEWAYS = 2
DEADLINE_MS = 400
"""Four times the default: the machine has two cores, and restarts servers meanwhile."""
TROUBLE_S = 3.0
"""Valkey is in trouble from a kill or a stop until so long after it is back: breakers wait for a
second, and a streamer that lost its records starts again."""
_DRAIN_S = 120.0
_FINAL = {"200", "409 decided_by_stream"}
_AGAIN = {"503 log_unavailable", "503 overloaded", "503 state_unavailable", "408 slow_request"}


@dataclass(frozen=True, slots=True)
class GatewayChaosPlan:
    """What to do.

    Attributes:
        seed: Of the plan and of the payments.
        kills: Number of processes to kill or stop.
        rate_per_s: New payments a second.
    """

    seed: int
    kills: int = 40
    rate_per_s: float = 40.0


@dataclass(slots=True)
class GatewayChaosResult:
    """What happened.

    Attributes:
        kills: How often each kind was done.
        statuses: How often each status was answered.
        payments: How many were asked about; each has an answer.
        answers: How many answers they had.
        changed: Payments with answers that differ, while Valkey was in trouble.
        problems: Everything that is wrong, in words.
    """

    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    payments: int = 0
    answers: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)


class _Run:
    """The state of a run: gateways, the streamer that works now, and when Valkey was in trouble."""

    def __init__(self, plan: GatewayChaosPlan, world: CrashWorld, services: Services) -> None:
        self.random = random.Random(plan.seed)  # noqa: S311 - reproducible on purpose
        self.world = world
        self.services = services
        self.troubles: list[tuple[float, float]] = []
        self.ports = free_ports(GATEWAYS)
        self.gateways: list[FlaggerProcess] = []
        self.streamer = world.start()

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def start_gateway(self, number: int, logs: Path) -> FlaggerProcess:
        environment = environment_of(
            self.world.settings,
            {
                "FLAGGER_GATEWAY_AUTH": "off",
                "FLAGGER_GATEWAY_DEADLINE_MS": str(DEADLINE_MS),
                "FLAGGER_GATEWAY_DRAIN_MS": "0",
                "FLAGGER_GATEWAY_FALLBACK": "rules",
            },
        )
        port = self.ports[number]
        return FlaggerProcess(
            ["gateway", "--port", str(port)], environment, logs / f"gateway-{number}.log"
        )

    def start(self, logs: Path) -> None:
        """Start the gateways and wait until they are ready."""
        self.gateways = [self.start_gateway(number, logs) for number in range(GATEWAYS)]
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        for url, gateway in zip(self.urls, self.gateways, strict=True):
            wait_for_url(f"{url}/readyz", gateway)

    def work(self, seconds: float) -> None:
        """Let everything work for a while; a streamer that ends by itself is started again."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.streamer = self.world.supervise(self.streamer)
            time.sleep(0.02)

    def kill_gateway(self, logs: Path) -> None:
        number = self.random.randrange(GATEWAYS)
        self.gateways[number].kill()
        self.work(self.random.uniform(0, 1))
        self.gateways[number] = self.start_gateway(number, logs)
        wait_for_url(f"{self.urls[number]}/readyz", self.gateways[number])

    def stop_gateway(self) -> None:
        """Stop a gateway in the midst of its requests; others answer their payers meanwhile."""
        gateway = self.random.choice(self.gateways)
        os.kill(gateway.pid, signal.SIGSTOP)
        self.work(self.random.uniform(0.1, 3))
        os.kill(gateway.pid, signal.SIGCONT)

    def trouble_valkey(self, *, kill: bool) -> None:
        since_s = time.monotonic()
        if kill:
            self.services.restart("valkey", away_s=self.random.uniform(0, 2))
        else:
            self.services.pause("valkey", self.random.uniform(0.01, 0.6))
        self.troubles.append((since_s, time.monotonic() + TROUBLE_S))

    def do(self, kind: str, logs: Path) -> None:
        """Kill or stop one process, and let it come back."""
        what, how = kind.split(" ", 1)
        if kind == "gateway killed":
            self.kill_gateway(logs)
        elif what == "gateway":
            self.stop_gateway()
        elif what == "valkey":
            self.trouble_valkey(kill=how == "killed")
        elif what == "streamer":
            self.streamer.kill()
        else:
            self.services.restart(what, away_s=self.random.uniform(0, 2))
        self.work(self.random.uniform(0.2, 2.0))

    def was_in_trouble(self, payment: Payment) -> bool:
        """Return True if Valkey was killed or stopped between a payment's first and last answer."""
        return any(
            payment.first_s < end_s and payment.last_s > since_s for since_s, end_s in self.troubles
        )


def run_gateway_chaos(
    plan: GatewayChaosPlan,
    world: CrashWorld,
    services: Services,
    logs: Path,
    on_kill: Callable[[str], None] = lambda _: None,
) -> GatewayChaosResult:
    """Kill, start again, and check in the end.

    Args:
        plan: What to do.
        world: A new one.
        services: The servers that it uses.
        logs: Folder for the gateways' logs.
        on_kill: Told after each kill what was done.

    Raises:
        FlaggerError: Something did not come back, or not everything was decided in the end.
        ExceptionGroup: A payment had no answer for a long time.
    """
    result = GatewayChaosResult()
    run = _Run(plan, world, services)
    try:
        run.start(logs)
        with Payers(run.urls, plan.rate_per_s, plan.seed) as payers:
            for _ in range(plan.kills):
                (kind,) = run.random.choices(list(KINDS), list(KINDS.values()))
                run.do(kind, logs)
                result.kills[kind] += 1
                on_kill(kind)
            payers.finish()
        run.wait_until_ready()
    finally:
        for gateway in run.gateways:
            gateway.kill()
    world.drain(world.supervise(run.streamer), timeout_s=_DRAIN_S).stop()
    _judge(result, run, payers)
    return result


def _judge(result: GatewayChaosResult, run: _Run, payers: Payers) -> None:
    result.statuses = payers.statuses
    result.payments = len(payers.payments)
    result.answers = sum(len(payment.told) for payment in payers.payments)
    unexpected = [
        f"{count} times {status}"
        for status, count in payers.statuses.items()
        if status[0].isdigit() and status not in _FINAL | _AGAIN
    ]
    result.problems += unexpected
    verdict = run.world.check()
    result.problems += verdict.problems
    decoder = msgspec.json.Decoder(Decision)
    decisions = {d.transaction_id: d for d in map(decoder.decode, run.world.decisions())}
    for payment in payers.payments:
        name = payment.body["transaction_id"]
        decided = decisions.get(name)
        if decided is None:
            result.problems.append(f"{name} was answered and is not on the decisions topic")
            continue
        true = Told(decided.decision, decided.decision_source, decided.score)
        wrong = [told for told in payment.told if told != true]
        if wrong and run.was_in_trouble(payment):
            result.changed += 1
        elif wrong:
            result.problems.append(f"{name}: told {wrong}, decided {true}")
