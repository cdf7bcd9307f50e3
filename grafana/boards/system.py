"""System health: what runs, what waits, what is lost from the ordinary way, what fills up."""

from __future__ import annotations

from typing import Any

from grafana.board import make_board
from grafana.panels import number, series

__all__ = ["board"]

_ALL = 'instance=~"$instance"'
_RATE = "[$__rate_interval]"
_BUILD = "{{job}} {{version}} {{revision}}"


def _rate(metric: str) -> str:
    return f"sum(rate(flagger_streamer_{metric}_total{{{_ALL}}}{_RATE}))"


_NUMBERS = [
    number(
        "Targets down",
        "Processes that Prometheus cannot reach.",
        "short",
        'count(up{job=~"flagger-.*|triton"} == 0) or on() vector(0)',
        width=6,
        critical=1,
    ),
    number(
        "Waiting streamers",
        "Streamers that wait for Triton, Valkey or their partitions; /readyz says why.",
        "short",
        f"count(max by (instance) (flagger_streamer_waiting{{{_ALL}}}) == 1) or on() vector(0)",
        width=6,
        critical=1,
    ),
    number(
        "Open breakers",
        "Services that a gateway leaves alone because they did not answer.",
        "short",
        f"sum(flagger_gateway_breaker_open{{{_ALL}}}) or on() vector(0)",
        width=6,
        critical=1,
    ),
    number(
        "Dead letters, last hour",
        "Messages that could not be decided: `flagger dead-letters` lists them.",
        "short",
        f"sum(increase(flagger_streamer_dead_lettered_total{{{_ALL}}}[1h]))",
        width=6,
        warning=1,
    ),
]

_WAITING = [
    series(
        "Waiting for",
        "1 while a streamer waits for a part.",
        "short",
        [(f"flagger_streamer_waiting{{{_ALL}}}", "{{instance}} {{part}}")],
    ),
    series(
        "Held messages",
        "Messages that wait for slower partitions while history is read; at 200,000 their "
        "partitions are paused. Labels and counts that lie ahead; at 20,000 their log is.",
        "short",
        [
            (f"flagger_streamer_held_messages{{{_ALL}}}", "{{instance}}"),
            (f"flagger_streamer_waiting_entries{{{_ALL}}}", "{{instance}} labels and counts"),
        ],
    ),
    series(
        "Requests to Triton under way",
        "At FLAGGER_MAX_IN_FLIGHT polling waits: Triton is the limit.",
        "short",
        [(f"flagger_streamer_in_flight_requests{{{_ALL}}}", "{{instance}}")],
    ),
    series(
        "Gateway: errors by kind",
        "Problems told to the caller, and faults in spite of which a decision was made.",
        "reqps",
        [
            (
                f"sum by (kind) (rate(flagger_gateway_errors_total{{{_ALL}}}{_RATE})) "
                "or on() vector(0)",
                "{{kind}}",
            )
        ],
    ),
    series(
        "Gateway: answers by status",
        "HTTP answers by route and status.",
        "reqps",
        [
            (
                f"sum by (route, status) (rate(flagger_gateway_responses_total{{{_ALL}}}{_RATE}))",
                "{{route}} {{status}}",
            )
        ],
        width=24,
        stacked=True,
    ),
]

_UNUSUAL = [
    series(
        "Not the ordinary way",
        "Dead letters, repeated ids, late transactions, messages read again after a restart, "
        "messages that Kafka removed before they were read, and customers in several partitions.",
        "ops",
        [
            (_rate("dead_lettered"), "dead letters"),
            (_rate("duplicates"), "duplicates"),
            (_rate("forwarded_repeats"), "of them decided by the gateway too"),
            (_rate("late"), "late"),
            (_rate("replayed"), "replayed"),
            (_rate("removed_unread"), "removed unread"),
            (_rate("moved"), "customer's last one in another partition"),
        ],
    ),
    series(
        "Too late",
        "Labels and terminal counts that had already left the terminal's ring; a count.",
        "short",
        [(f"flagger_streamer_too_late{{{_ALL}}}", "{{instance}}")],
    ),
    series(
        "Lists and rules refused",
        "1 while a door refuses the file of lists and rules as it is now; its log says why. Those "
        "before stay in force.",
        "short",
        [
            (f"flagger_streamer_rulebook_refused{{{_ALL}}}", "{{instance}}"),
            (f"flagger_gateway_rulebook_refused{{{_ALL}}}", "{{instance}}"),
        ],
    ),
]

_STATE = [
    series(
        "State",
        "Memory of the entity records.",
        "bytes",
        [(f"flagger_streamer_state_bytes{{{_ALL}}}", "{{instance}}")],
    ),
    series(
        "Entities in memory",
        "Customers and terminals; above FLAGGER_MAX_CUSTOMERS_IN_MEMORY customers leave.",
        "short",
        [
            (f"sum(flagger_streamer_customers{{{_ALL}}})", "customers"),
            (f"sum(flagger_streamer_terminals{{{_ALL}}})", "terminals"),
        ],
    ),
    series(
        "Records and the store",
        "Records a second: written to Valkey, found there, made new, and evicted from memory.",
        "ops",
        [
            (f"sum(rate(flagger_streamer_records_written{{{_ALL}}}{_RATE}))", "written"),
            (f"sum(rate(flagger_streamer_records_loaded{{{_ALL}}}{_RATE}))", "loaded"),
            (f"sum(rate(flagger_streamer_records_created{{{_ALL}}}{_RATE}))", "created"),
            (f"sum(rate(flagger_streamer_customers_evicted{{{_ALL}}}{_RATE}))", "evicted"),
        ],
        width=24,
    ),
]

_PROCESSES = [
    series(
        "Processes by build",
        "How many processes of a service run which version and commit. Two builds of one service "
        "for longer than a deploy takes: it is stuck half way.",
        "short",
        [(f"count by (job, version, revision) (flagger_build_info{{{_ALL}}})", _BUILD)],
        width=24,
        stacked=True,
    ),
    series(
        "CPU",
        "Cores that a process uses.",
        "short",
        [
            (
                f'rate(process_cpu_seconds_total{{job=~"flagger-.*", {_ALL}}}{_RATE})',
                "{{job}} {{instance}}",
            )
        ],
    ),
    series(
        "Streamer: waiting for a core",
        "Share of the time in which its thread could run and waited for a core. Above 25 % it "
        "gathers messages for up to 20 ms, so that others have less to do; near 50 % this machine "
        "has too few cores.",
        "percentunit",
        [(f"flagger_streamer_cpu_wait_share{{{_ALL}}}", "{{instance}}")],
    ),
    series(
        "Memory",
        "Resident memory of a process.",
        "bytes",
        [
            (
                f'process_resident_memory_bytes{{job=~"flagger-.*", {_ALL}}}',
                "{{job}} {{instance}}",
            )
        ],
    ),
    series(
        "Triton's machine: CPU",
        "Share of the machine's processors in use, as Triton sees it.",
        "percentunit",
        [("nv_cpu_utilization", "{{instance}}")],
    ),
    series(
        "Triton's machine: memory",
        "Memory in use on the machine that Triton runs on.",
        "bytes",
        [("nv_cpu_memory_used_bytes", "{{instance}}")],
    ),
]


_ALERTS = [
    series(
        "Alerts that wait",
        "Alerts that a receiver was not told of yet: for their digest, or because it is away.",
        "short",
        [(f"flagger_alerts_waiting{{{_ALL}}}", "{{receiver}}")],
    ),
    series(
        "Oldest alert that waits",
        "Time since its transaction. Beyond a digest's interval the receiver is away.",
        "s",
        [(f"flagger_alerts_oldest_waiting_seconds{{{_ALL}}}", "{{receiver}}")],
    ),
    series(
        "Transaction to delivered alert",
        "p50 and p99 of the time from a transaction's message to the receiver's yes; digests "
        "wait on purpose.",
        "s",
        [
            (
                f"histogram_quantile({share}, sum by (receiver, le) "
                f"(rate(flagger_alerts_delivery_seconds_bucket{{{_ALL}}}{_RATE})))",
                f"{{{{receiver}}}} {name}",
            )
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ],
    ),
    series(
        "Alert messages",
        "Messages a second that receivers took, the alerts told with them, and failed attempts.",
        "ops",
        [
            (
                f"sum by (receiver) (rate(flagger_alerts_{metric}_total{{{_ALL}}}{_RATE})) "
                "or on() vector(0)",
                f"{{{{receiver}}}} {name}",
            )
            for metric, name in (
                ("messages", "messages"),
                ("delivered", "alerts"),
                ("failures", "failed attempts"),
            )
        ],
    ),
    series(
        "Alert service",
        "Alerts read a second, of them those that no rule names, and what went wrong: messages "
        "that are no alert, offsets that Kafka did not take, heartbeats without an answer, "
        "notices that gave way.",
        "ops",
        [
            (f"sum(rate(flagger_alerts_{metric}_total{{{_ALL}}}{_RATE}))", name)
            for metric, name in (
                ("consumed", "read"),
                ("unmatched", "no rule"),
                ("unreadable", "no alert"),
                ("commit_failures", "commits that failed"),
                ("heartbeat_failures", "heartbeats that failed"),
                ("dropped_notices", "notices dropped"),
            )
        ],
    ),
    series(
        "Alert receivers away, decisions away",
        "1 while a receiver takes nothing, and while no decisions are made where that is watched.",
        "short",
        [
            (f"flagger_alerts_receiver_failing{{{_ALL}}}", "{{receiver}}"),
            (f"flagger_alerts_silent{{{_ALL}}}", "no decisions"),
        ],
    ),
]


def board() -> Any:
    """Return the board."""
    return make_board(
        "flagger-system",
        "Fraud Flagger: system health",
        "What runs, what waits, what leaves the ordinary way, what fills up.",
        {
            "Now": _NUMBERS,
            "Waiting and errors": _WAITING,
            "Unusual messages": _UNUSUAL,
            "Alert channels": _ALERTS,
            "State": _STATE,
            "Processes": _PROCESSES,
        },
    )
