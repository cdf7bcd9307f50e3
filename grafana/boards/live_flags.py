"""Live flags: what is flagged right now, by whom, and whether that is unusual."""

from __future__ import annotations

from typing import Any

from grafana.board import make_board
from grafana.panels import number, series
from grafana.sql import WINDOW, case_number, case_series, case_table

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


_OPEN = "state IN ('new', 'claimed', 'escalated')"
_MINUTE = "flagged_at_ms / 60000 * 60"


def _flags_by(column: str) -> str:
    return (
        f"SELECT {_MINUTE} AS time, coalesce({column}, 'unknown') AS metric, count(*) AS value "
        f"FROM cases WHERE {WINDOW} GROUP BY 1, 2 ORDER BY 1"
    )


_CASES = [
    case_number(
        "Open cases",
        "Flags that nobody has confirmed or dismissed yet, whenever they came.",
        "short",
        f"SELECT count(*) AS value FROM cases WHERE {_OPEN}",
    ),
    case_number(
        "Amount at risk",
        "Sum of score times amount over the open cases: what is lost on average if nobody looks. "
        "Currencies are added as they are.",
        "short",
        f"SELECT coalesce(sum(expected_loss), 0) AS value FROM cases WHERE {_OPEN}",
    ),
    case_number(
        "Oldest case that nobody has taken",
        "How long it has waited.",
        "s",
        "SELECT coalesce(extract(epoch FROM now()) - min(flagged_at_ms) / 1000.0, 0) AS value "
        "FROM cases WHERE state = 'new'",
    ),
    case_number(
        "Precision of what was decided",
        "Share of confirmed fraud among the cases that analysts decided, of those flagged in the "
        "time shown. Cases that wait are not in it.",
        "percentunit",
        "SELECT avg(CASE WHEN state = 'confirmed_fraud' THEN 1.0 ELSE 0.0 END) AS value "
        f"FROM cases WHERE state IN ('confirmed_fraud', 'dismissed') AND {WINDOW}",
    ),
    case_series(
        "Flags a minute by channel",
        "From the case store, by when the decision was made.",
        "short",
        _flags_by("channel"),
    ),
    case_series(
        "Flags a minute by country",
        "From the case store, by when the decision was made.",
        "short",
        _flags_by("country"),
    ),
    case_table(
        "Latest flags",
        "The fifty latest; the desk shows the rest, and who the customer is.",
        'SELECT to_timestamp(flagged_at_ms / 1000.0) AS "Flagged", decision AS "Decision", '
        'decision_source AS "By", round(score::numeric, 3) AS "Score", amount AS "Amount", '
        'currency AS "Currency", channel AS "Channel", country AS "Country", '
        'merchant_category AS "Category", reasons->>0 AS "First reason", state AS "State", '
        'claimed_by AS "Analyst", transaction_id AS "Transaction" '
        f"FROM cases WHERE {WINDOW} ORDER BY flagged_at_ms DESC LIMIT 50",
    ),
]


def board() -> Any:
    """Return the board."""
    return make_board(
        "flagger-live-flags",
        "Fraud Flagger: live flags",
        "What is flagged right now, by whom, and whether that is unusual.",
        {"Now": _NUMBERS, "Flags": _FLAGS, "Cases (from the review desk's PostgreSQL)": _CASES},
        cases=True,
        variables={"decision": ("Decision", f"label_values({_DECIDED}, decision)")},
    )
