"""Live flags: what is flagged right now, by whom, and whether that is unusual."""

from __future__ import annotations

from typing import Any

from grafana.board import make_board
from grafana.panels import number, series

__all__ = ["board"]

_ALL = 'instance=~"$instance"'
_CHOSEN = 'instance=~"$instance", decision=~"$decision"'
_FLAGGED = 'instance=~"$instance", decision=~"review|decline"'
_DECIDED = "flagger_streamer_decided_total"
_RATE = "[$__rate_interval]"

_NUMBERS = [
    number(
        "Flagged a minute",
        "Transactions sent to review or declined, from the stream of all decisions; those of the "
        "gateway are in it.",
        "short",
        f"sum(rate({_DECIDED}{{{_FLAGGED}}}{_RATE})) * 60 or on() vector(0)",
        width=6,
    ),
    number(
        "Alert rate",
        "Share of decisions that are review or decline. A jump means an attack or a model gone "
        "wrong; zero for long means a blind model.",
        "percentunit",
        f"(sum(rate({_DECIDED}{{{_FLAGGED}}}{_RATE})) or on() vector(0)) "
        f"/ (sum(rate({_DECIDED}{{{_ALL}}}{_RATE})) > 0) or on() vector(0)",
        width=6,
    ),
    number(
        "Decisions a second",
        "Decisions written to the topic, all sources.",
        "ops",
        f"sum(rate({_DECIDED}{{{_ALL}}}{_RATE})) or on() vector(0)",
        width=6,
    ),
    number(
        "Without the model",
        "Share of decisions by rules or by the fallback, because the model could not be asked in "
        "time.",
        "percentunit",
        f'(sum(rate({_DECIDED}{{{_ALL}, decision_source=~"rules|fallback"}}{_RATE})) '
        f"or on() vector(0)) / (sum(rate({_DECIDED}{{{_ALL}}}{_RATE})) > 0) or on() vector(0)",
        width=6,
        warning=0.001,
        critical=0.01,
    ),
]

_FLAGS = [
    series(
        "Flags a minute by decision",
        "Review waits for a person; decline is final.",
        "short",
        [
            (
                f"sum by (decision) (rate({_DECIDED}{{{_FLAGGED}}}{_RATE})) * 60 or on() vector(0)",
                "{{decision}}",
            )
        ],
        stacked=True,
    ),
    series(
        "Flags a minute by source",
        "Who decided: the model, rules, a list, or the fallback.",
        "short",
        [
            (
                f"sum by (decision_source) (rate({_DECIDED}{{{_FLAGGED}}}{_RATE})) * 60 "
                "or on() vector(0)",
                "{{decision_source}}",
            )
        ],
        stacked=True,
    ),
    series(
        "Alert rate against its day",
        "Share of flagged decisions of the last ten minutes, and of the last day. The alert "
        "FlaggerFlagRateHigh fires at three times the day's.",
        "percentunit",
        [
            ("flagger:flagged:ratio_rate10m", "10 minutes"),
            ("flagger:flagged:ratio_rate1d", "1 day"),
        ],
    ),
    series(
        "Decisions a second",
        "All decisions in the topic, by decision.",
        "ops",
        [(f"sum by (decision) (rate({_DECIDED}{{{_CHOSEN}}}{_RATE}))", "{{decision}}")],
        stacked=True,
    ),
    series(
        "Gateway: decisions a second",
        "Decisions made while a caller waits, by decision and source.",
        "ops",
        [
            (
                "sum by (decision, decision_source) (rate(flagger_gateway_decisions_total"
                f"{{{_CHOSEN}}}{_RATE}))",
                "{{decision}} by {{decision_source}}",
            )
        ],
        width=24,
        stacked=True,
    ),
]


def board() -> Any:
    """Return the board."""
    return make_board(
        "flagger-live-flags",
        "Fraud Flagger: live flags",
        "What is flagged right now, by whom, and whether that is unusual.",
        {"Now": _NUMBERS, "Flags": _FLAGS},
        variables={"decision": ("Decision", f"label_values({_DECIDED}, decision)")},
    )
