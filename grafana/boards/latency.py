"""Latency and throughput: is every payment decided in time, and where does the time go."""

from __future__ import annotations

from typing import Any

from grafana.board import make_board
from grafana.panels import number, quantiles, series

__all__ = ["board"]

_ALL = 'instance=~"$instance"'
_RATE = "[$__rate_interval]"
_BUDGET_S = 0.1
_BURN = "Speed at which the month's error budget is used: at 1 it lasts exactly a month."


def _triton(part: str) -> str:
    """Return a query of one part's mean time per request, seconds, by model."""
    spent = f"sum by (model) (rate(nv_inference_{part}_duration_us{_RATE})) / 1e6"
    requests = f"sum by (model) (rate(nv_inference_request_success{_RATE}))"
    return f"{spent} / ({requests} > 0) or {requests} * 0"


_NUMBERS = [
    number(
        "Stream p99",
        "99 % of transactions are decided within this time of their event.",
        "s",
        "histogram_quantile(0.99, sum by (le) (rate("
        f"flagger_streamer_event_to_decision_seconds_bucket{{{_ALL}}}{_RATE})))",
        width=6,
        warning=0.05,
        critical=_BUDGET_S,
    ),
    number(
        "Gateway p99",
        "99 % of synchronous requests are answered within this time.",
        "s",
        "histogram_quantile(0.99, sum by (le) (rate("
        f"flagger_gateway_request_seconds_bucket{{{_ALL}}}{_RATE})))",
        width=6,
        warning=0.05,
        critical=_BUDGET_S,
    ),
    number(
        "Lag",
        "Messages in the log that are not decided yet, all streamers.",
        "short",
        f"sum(flagger_streamer_lag_messages{{{_ALL}}})",
        width=6,
        warning=10_000,
        critical=100_000,
    ),
    number(
        "Lag in event time",
        "Age of the newest decided transaction while others wait; the worst streamer.",
        "s",
        f"max(flagger_streamer_event_time_lag_seconds{{{_ALL}}})",
        width=6,
        warning=1,
        critical=10,
    ),
]

_OBJECTIVE = [
    series(
        "Burn rate, 1 hour",
        f"{_BURN} Above 14.4 a month's budget is gone in two days: a person is called.",
        "short",
        [("flagger:slo_burn:rate1h", "{{slo}}")],
        limit=14.4,
    ),
    series(
        "Burn rate, 6 hours",
        f"{_BURN} Above 6 it is gone in five days: a person is called.",
        "short",
        [("flagger:slo_burn:rate6h", "{{slo}}")],
        limit=6,
    ),
]

_STREAM = [
    series(
        "Event to decision",
        "From the message's timestamp to its decision, before the commit. What waits in Kafka "
        "counts: a backlog shows here.",
        "s",
        quantiles("flagger_streamer_event_to_decision_seconds", _ALL),
        limit=_BUDGET_S,
    ),
    series(
        "Commit",
        "Duration of a Kafka transaction's commit; readers see the decision after it.",
        "s",
        quantiles("flagger_streamer_commit_seconds", _ALL),
    ),
    series(
        "Throughput",
        "Messages taken from the topic, and decisions written.",
        "ops",
        [
            (f"sum(rate(flagger_streamer_consumed_total{{{_ALL}}}{_RATE}))", "consumed"),
            (f"sum(rate(flagger_streamer_decided_total{{{_ALL}}}{_RATE}))", "decided"),
        ],
    ),
    series(
        "Lag by streamer",
        "Messages in the log that are not decided yet.",
        "short",
        [(f"flagger_streamer_lag_messages{{{_ALL}}}", "{{instance}}")],
    ),
    series(
        "Time by stage",
        "Seconds of each second that a streamer spends in a stage; a sum of 1 means no time left.",
        "percentunit",
        [
            (
                f"sum by (stage) (rate(flagger_streamer_stage_seconds_total{{{_ALL}}}{_RATE})) "
                f'/ ignoring(stage) group_left() count(up{{job="flagger-streamer", {_ALL}}} == 1)',
                "{{stage}}",
            )
        ],
        stacked=True,
    ),
    series(
        "Rows a request to Triton",
        "Small when the load is low, large when it is high.",
        "short",
        quantiles("flagger_streamer_batch_rows", _ALL),
    ),
]

_GATEWAY = [
    series(
        "Request",
        "From a scoring request's arrival to its answer, all outcomes.",
        "s",
        quantiles("flagger_gateway_request_seconds", _ALL),
        limit=_BUDGET_S,
    ),
    series(
        "p99 by stage",
        "Where a slow request spends its time.",
        "s",
        [
            (
                "histogram_quantile(0.99, sum by (le, stage) (rate("
                f"flagger_gateway_stage_seconds_bucket{{{_ALL}}}{_RATE})))",
                "{{stage}}",
            )
        ],
    ),
    series(
        "Requests by outcome",
        "decided and replayed are decisions; problem is an answer without one.",
        "reqps",
        [
            (
                f"sum by (outcome) (rate(flagger_gateway_request_seconds_count{{{_ALL}}}{_RATE}))",
                "{{outcome}}",
            )
        ],
        stacked=True,
    ),
    series(
        "Requests in flight",
        "Being worked on now; at FLAGGER_GATEWAY_MAX_IN_FLIGHT further ones are refused.",
        "short",
        [(f"flagger_gateway_requests_in_flight{{{_ALL}}}", "{{instance}}")],
    ),
]

_TRITON = [
    series(
        "Queue",
        "Mean time that a request waits in Triton before it is computed, by model.",
        "s",
        [(_triton("queue"), "{{model}}")],
        width=8,
    ),
    series(
        "Compute",
        "Mean time of the computation itself, by model.",
        "s",
        [(_triton("compute_infer"), "{{model}}")],
        width=8,
    ),
    series(
        "Rows a second",
        "Rows scored, by model.",
        "rowsps",
        [(f"sum by (model) (rate(nv_inference_count{_RATE}))", "{{model}}")],
        width=8,
    ),
]


def board() -> Any:
    """Return the board."""
    return make_board(
        "flagger-latency",
        "Fraud Flagger: latency and throughput",
        "Is every payment decided in time, and where does the time go.",
        {
            "Now": _NUMBERS,
            "Objective: 99 % of the stream, 99.9 % of the gateway within 100 ms": _OBJECTIVE,
            "Stream": _STREAM,
            "Gateway": _GATEWAY,
            "Triton": _TRITON,
        },
    )
