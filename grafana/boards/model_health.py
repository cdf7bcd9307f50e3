"""Model health: which version decides, how much it flags, what fails when it is asked."""

from __future__ import annotations

from typing import Any

from grafana.board import make_board
from grafana.boards.label_panels import MATURE_LABELS
from grafana.boards.model_panels import BRAKES, DRIFT, SCORES, TRIALS
from grafana.panels import number, series
from grafana.sql import WINDOW, case_number, case_table

__all__ = ["board"]

_ALL = 'instance=~"$instance"'
_RATE = "[$__rate_interval]"
_DECIDED = "flagger_streamer_decided_total"
_FLAGGED = f'{_DECIDED}{{{_ALL}, decision=~"review|decline"}}'

_NUMBERS = [
    number(
        "Model versions asked",
        "Versions that the gateways ask now; more than one for minutes means that one of them "
        "refused the new version: see its log.",
        "short",
        "count(count by (version) (flagger_gateway_model_info))",
        width=8,
        warning=2,
    ),
    number(
        "Flagged by the model",
        "Share of the model's own decisions that are review or decline.",
        "percentunit",
        f'(sum(rate({_DECIDED}{{{_ALL}, decision_source="model", decision=~"review|decline"}}'
        f"{_RATE})) or on() vector(0)) / "
        f'(sum(rate({_DECIDED}{{{_ALL}, decision_source="model"}}{_RATE})) > 0) or on() vector(0)',
        width=8,
    ),
    number(
        "Flags without an explanation",
        "Share of flagged transactions whose reasons are the policy's alone, because the "
        "explanation did not come in time.",
        "percentunit",
        f"sum(rate(flagger_streamer_unexplained_total{{{_ALL}}}{_RATE})) "
        f"/ (sum(rate({_FLAGGED}{_RATE})) > 0) or on() vector(0)",
        width=8,
        warning=0.05,
    ),
]

_DECISIONS = [
    series(
        "Version that the gateways ask",
        "Gateways by model entry and version. During a switch two versions overlap for seconds.",
        "short",
        [("count by (model, version) (flagger_gateway_model_info)", "{{model}} {{version}}")],
        stacked=True,
    ),
    series(
        "Requests served by version",
        "Requests that Triton answered, by model and version.",
        "reqps",
        [
            (
                f"sum by (model, version) (rate(nv_inference_request_success{_RATE}))",
                "{{model}} {{version}}",
            )
        ],
    ),
    series(
        "Decisions by source",
        "Share of decisions by the model, rules, a list or the fallback.",
        "percentunit",
        [
            (
                f"sum by (decision_source) (rate({_DECIDED}{{{_ALL}}}{_RATE})) "
                f"/ ignoring(decision_source) group_left() "
                f"sum(rate({_DECIDED}{{{_ALL}}}{_RATE}))",
                "{{decision_source}}",
            )
        ],
        stacked=True,
    ),
    series(
        "Alert rate by decision",
        "Share of all decisions; compare with the rate at which thresholds were chosen.",
        "percentunit",
        [
            (
                f"sum by (decision) (rate({_FLAGGED}{_RATE})) / ignoring(decision) group_left() "
                f"sum(rate({_DECIDED}{{{_ALL}}}{_RATE})) or on() vector(0)",
                "{{decision}}",
            )
        ],
    ),
]

_FAILURES = [
    series(
        "Failed requests of the streamers",
        "unavailable is asked again; refused becomes a dead letter.",
        "reqps",
        [
            (
                f"sum by (kind) (rate(flagger_streamer_model_errors_total{{{_ALL}}}{_RATE})) "
                "or on() vector(0)",
                "{{kind}}",
            )
        ],
    ),
    series(
        "Failed requests in Triton",
        "REJECTED: its queue was full or the request too old. BACKEND: the model itself.",
        "reqps",
        [
            (
                f"sum by (model, reason) (rate(nv_inference_request_failure{_RATE}))",
                "{{model}} {{reason}}",
            )
        ],
    ),
    series(
        "Flags without an explanation",
        "Flagged transactions a second whose explanation did not come in time.",
        "ops",
        [(f"sum(rate(flagger_streamer_unexplained_total{{{_ALL}}}{_RATE}))", "unexplained")],
    ),
    series(
        "Triton's queue",
        "Requests that wait in Triton, by model.",
        "short",
        [("sum by (model) (nv_inference_pending_request_count)", "{{model}}")],
    ),
]


_DECIDED_CASES = f"state IN ('confirmed_fraud', 'dismissed') AND {WINDOW}"
_PRECISION = "avg(CASE WHEN state = 'confirmed_fraud' THEN 1.0 ELSE 0.0 END)"
_LABELS = [
    case_number(
        "Precision from labels",
        "Share of confirmed fraud among the model's flags that analysts decided, of those flagged "
        "in the time shown: choose days. Cases that wait are not in it.",
        "percentunit",
        f"SELECT {_PRECISION} AS value FROM cases WHERE decision_source = 'model' "
        f"AND {_DECIDED_CASES}",
    ),
    case_table(
        "Precision by version and decision",
        "What analysts said of each version's flags; few decided cases say little.",
        'SELECT model AS "Model", model_version AS "Version", decision AS "Decision", '
        'count(*) AS "Decided", '
        "count(*) FILTER (WHERE state = 'confirmed_fraud') AS \"Fraud\", "
        f'round({_PRECISION}, 3) AS "Precision" FROM cases '
        f"WHERE decision_source = 'model' AND {_DECIDED_CASES} GROUP BY 1, 2, 3 ORDER BY 2 DESC, 3",
        width=18,
    ),
]


def board() -> Any:
    """Return the board."""
    return make_board(
        "flagger-model-health",
        "Fraud Flagger: model health",
        "Which version decides, how much it flags, what fails when it is asked.",
        {
            "Now": _NUMBERS,
            "Decisions": _DECISIONS,
            "Scores": SCORES,
            "Labels (from the review desk's PostgreSQL)": _LABELS,
            "Mature labels (from the topics)": MATURE_LABELS,
            "Brakes": BRAKES,
            "Drift": DRIFT,
            "Shadow and canary": TRIALS,
            "Failures": _FAILURES,
        },
        cases=True,
    )
