"""What a rate of payments needs, by arithmetic from measured figures, and what breaks first.

Nothing here is a measurement of a cluster: figures of one machine are multiplied. Assumptions are
fields of `Demand` with their reasons; `docs/scaling.md` says what they leave out.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from flagger.bench_results import StoredResult
from flagger.errors import DataError

__all__ = ["MAX_PARTITIONS", "Demand", "Figures", "Limit", "Plan", "limits_of", "plan_for"]

STORED = Path(__file__).with_name("figures.json")
"""Made by `flagger scale --results loadtest/results --valkey URL --save deploy/figures.json`."""
MAX_PARTITIONS = 1_024
"""Of FLAGGER_PARTITIONS; two for each streamer, so that their number can double."""
_OWN_STAGES = ("copy_state", "decode", "features", "load", "read", "submit", "write")
"""The streamer's main thread without waits and side logs."""
_DAY_S = 86_400
_MONTH_S = 30 * _DAY_S
_PEAK = 3
"""The peak over the mean of a day."""
_SIDE_SHARE = 0.5
"""Most of a streamer's thread that may go to what all streamers do: above, new ones add little."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured on one machine with two cores; microseconds are of one core.

    Attributes:
        own_us: A streamer's main thread, for each of its own transactions.
        side_us: The same thread, for each transaction of all streamers (terminal activity).
        streamer_cpu_us: All threads of a streamer, for each of its own transactions.
        triton_rows_per_s: One CPU instance of the model, pipelined.
        rest_us: At most this much for the broker and Valkey, per transaction: what was left of
            both cores while one streamer worked a backlog off.
        produce_us: At most this much for a producer and the broker, per transaction.
        gateway_requests_per_s: At this rate one gateway process kept its objectives.
        valkey_writes_per_s: Customer records that one server takes.
        customer_bytes: Memory of a customer's record in Valkey, with its key.
        terminal_bytes: Memory of a terminal's record in Valkey, with its key.
    """

    own_us: float
    side_us: float
    streamer_cpu_us: float
    triton_rows_per_s: float
    rest_us: float
    produce_us: float
    gateway_requests_per_s: float
    valkey_writes_per_s: float
    customer_bytes: float
    terminal_bytes: float

    @classmethod
    def load(cls, path: Path = STORED) -> Self:
        """Read figures that `save` wrote.

        Raises:
            DataError: The file is missing, or is not what `save` writes.
        """
        try:
            content = json.loads(path.read_text())
            return cls(**{name: float(value) for name, value in content.items()})
        except (OSError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                file=str(path), problem=f"is not a file of figures ({error})",
                remedy="Make it with `flagger scale --results ... --save`.",
            ) from error  # fmt: skip

    @classmethod
    def from_results(
        cls, folder: Path, *, valkey_writes_per_s: float, customer_bytes: float,
        terminal_bytes: float,
    ) -> Self:  # fmt: skip
        """Derive the figures from benchmark results.

        Raises:
            DataError: A result is missing, or lacks a figure.
        """
        stream = StoredResult.load(
            folder / "stream-prefilled.json", "Measure it: `flagger bench stream`."
        )
        gateway = StoredResult.load(
            folder / "gateway-open-loop.json", "Measure it: `flagger loadtest`."
        )
        cores, value = stream.machine.cores, stream.median
        streamer_cpu_us, triton_rows_per_s = value("streamer's CPU"), value("Triton only")
        whole_us = cores * 1e6 / value("stream")
        return cls(
            own_us=sum(value(f"stage {name}") for name in _OWN_STAGES),
            side_us=value("stage side_logs"),
            streamer_cpu_us=streamer_cpu_us,
            triton_rows_per_s=triton_rows_per_s,
            rest_us=max(0.0, whole_us - streamer_cpu_us - 1e6 / triton_rows_per_s),
            produce_us=cores * 1e6 / value("produce only"),
            gateway_requests_per_s=gateway.rate_per_s,
            valkey_writes_per_s=valkey_writes_per_s,
            customer_bytes=customer_bytes,
            terminal_bytes=terminal_bytes,
        )

    def save(self, path: Path) -> None:
        """Write the figures, rounded to four digits."""
        rounded = {name: float(f"{value:.4g}") for name, value in asdict(self).items()}
        path.write_text(json.dumps(rounded, indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked for, and what is assumed about it.

    Attributes:
        rate: Transactions per second at the peak, of both doors together.
        gateway_share: Part of them that the gateway decides; the streamer applies them all.
        utilisation: Most that a core is used at the peak; the rest is for bursts and restarts.
        customers_per_tps: Customers ever seen, for each transaction per second at the peak: two
            payments a day each and a peak of three times the mean give 14,400.
        customers_per_terminal: Customers for each terminal.
        kafka_copies: Copies of each partition.
        valkey_max_bytes: Memory of the largest Valkey server to be had.
        decision_bytes: Memory of a decision that the gateway keeps for a day.
    """

    rate: float
    gateway_share: float = 0.05
    utilisation: float = 0.6
    customers_per_tps: float = 14_400
    customers_per_terminal: float = 20
    kafka_copies: int = 3
    valkey_max_bytes: float = 256e9
    decision_bytes: float = 300

    def valkey_bytes(self, figures: Figures) -> float:
        """Return the memory of all records and of a day's decisions."""
        customers = self.rate * self.customers_per_tps
        decisions = self.rate * self.gateway_share / _PEAK * _DAY_S
        return (
            customers * figures.customer_bytes
            + customers / self.customers_per_terminal * figures.terminal_bytes
            + decisions * self.decision_bytes
        )


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing that runs out.

    Attributes:
        what: The thing.
        rate: Transactions per second from which one of it, or one cell, is not enough.
        remedy: What then helps.
    """

    what: str
    rate: float
    remedy: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate needs; counts are of the whole, spread evenly over the cells.

    Attributes:
        cells: Independent deployments, each with its own topics, group and Valkey.
        partitions: Of the transactions topic, in each cell.
        streamers: Processes.
        streamer_cores: Cores that they use at the peak.
        side_share: Part of a streamer's main thread that goes to the terminals' activity.
        triton_instances: CPU instances of the model, a core each.
        kafka_cores: Upper bound.
        gateways: Processes.
        valkey_bytes: Memory of the primaries.
        valkey_writes_per_s: Records written, if no customer pays twice within a second.
        rebuild_hours: To read a month's log again at full speed, where a cell's Valkey lost all.
    """

    cells: int
    partitions: int
    streamers: int
    streamer_cores: float
    side_share: float
    triton_instances: int
    kafka_cores: float
    gateways: int
    valkey_bytes: float
    valkey_writes_per_s: float
    rebuild_hours: float


def limits_of(figures: Figures, demand: Demand) -> list[Limit]:
    """Return what runs out as the rate grows, first things first; `demand.rate` plays no part."""
    used = demand.utilisation
    one = Demand(**{**asdict(demand), "rate": 1.0})
    used_rate = used * 1e6
    gateway = math.inf
    if demand.gateway_share > 0:
        gateway = figures.gateway_requests_per_s / demand.gateway_share
    side = used_rate * _SIDE_SHARE / figures.side_us
    # At the most streamers S that the partitions allow: own R / S + side R = used.
    most = MAX_PARTITIONS // 2
    partitions = used_rate / (figures.own_us / most + figures.side_us)
    found = [
        Limit(
            "a streamer's main thread",
            used_rate / (figures.own_us + figures.side_us),
            "more streamers",
        ),
        Limit(
            "a Triton CPU instance", used * figures.triton_rows_per_s, "more instances or replicas"
        ),
        Limit("a gateway process", gateway, "more replicas"),
        Limit("a Valkey server's memory", demand.valkey_max_bytes / one.valkey_bytes(figures),
              "more cells; or fewer customers kept"),
        Limit("a Valkey server's writes", used * figures.valkey_writes_per_s, "more cells"),
        Limit("the terminals' activity, which every streamer reads", side, "more cells"),
        Limit("the partitions of a topic", partitions, "more cells"),
    ]  # fmt: skip
    return sorted(found, key=lambda limit: limit.rate)


def plan_for(figures: Figures, demand: Demand) -> Plan:
    """Return what the demand needs."""
    used_us = demand.utilisation * 1e6
    cells = 1
    for limit in limits_of(figures, demand):
        if "more cells" in limit.remedy:
            cells = max(cells, math.ceil(demand.rate / limit.rate))
    rate = demand.rate / cells
    side_us_per_s = figures.side_us * rate
    streamers = max(1, math.ceil(figures.own_us * rate / (used_us - side_us_per_s)))
    requests = demand.rate * demand.gateway_share
    kafka_us = figures.rest_us + figures.produce_us * demand.kafka_copies
    full_speed = 1e6 / (figures.own_us / streamers + figures.side_us)
    side_cores = side_us_per_s * streamers * cells / 1e6
    return Plan(
        cells=cells,
        partitions=min(MAX_PARTITIONS, max(4, 1 << (2 * streamers - 1).bit_length())),
        streamers=streamers * cells,
        streamer_cores=(figures.streamer_cpu_us - figures.side_us) * demand.rate / 1e6 + side_cores,
        side_share=side_us_per_s / 1e6,
        triton_instances=max(
            cells, math.ceil(demand.rate / (demand.utilisation * figures.triton_rows_per_s))
        ),
        kafka_cores=kafka_us * demand.rate / 1e6 / demand.utilisation,
        # The least positive share times a rate can round to no request at all.
        gateways=max(
            int(demand.gateway_share > 0), math.ceil(requests / figures.gateway_requests_per_s)
        ),
        valkey_bytes=demand.valkey_bytes(figures),
        valkey_writes_per_s=demand.rate,
        rebuild_hours=_MONTH_S * rate / _PEAK / full_speed / 3_600,
    )
