"""Panels of the model health board: brakes, drift, and the versions that are tried."""

from __future__ import annotations

from grafana.panels import QUANTILES, buckets, number, quantiles, series

__all__ = ["BRAKES", "DRIFT", "SCORES", "TRIALS"]

_ALL = 'instance=~"$instance"'
_RATE = "[$__rate_interval]"
_DECIDED = "flagger_streamer_decided_total"
_DOORS = ("streamer", "gateway")


def _compared(door: str, selector: str = "") -> str:
    """Return the query for what a door's shadow has compared a second."""
    return f"sum(rate(flagger_{door}_shadow_decisions_total{{{_ALL}{selector}}}{_RATE}))"


def _agreed(door: str) -> str:
    """Return the query for what both versions want to decide alike, a second."""
    words = ("approve", "review", "decline")
    both = (_compared(door, f', live="{word}", shadow="{word}"') for word in words)
    return " + ".join(f"({query} or on() vector(0))" for query in both)


_SCORES = (
    f"sum by (le) (rate(flagger_streamer_score_bucket{{{_ALL}}}{_RATE}) "
    f"or rate(flagger_gateway_score_bucket{{{_ALL}}}{_RATE}))"
)
"""Each door counts what it decided itself; what the gateway decided is not in the streamer's."""

SCORES = [
    buckets(
        "Score distribution",
        "Scores a second between the bounds at the left, stream and gateway together. A band that "
        "moves without a new version is drift; one that crosses a threshold changes how much is "
        "flagged.",
        "percentunit",
        _SCORES,
    ),
    series(
        "Scores from below",
        "Half, 95 %, 99 % and 99.9 % of the scores lie below these lines: where thresholds cut off "
        "so much of the payments.",
        "percentunit",
        [(f"histogram_quantile({q}, {_SCORES})", f"{q:.1%}") for q in QUANTILES],
    ),
]

BRAKES = [
    number(
        "Brakes engaged",
        "Doors whose declines become reviews now, because far too many decisions were declines "
        "or flags.",
        "short",
        "sum(flagger_streamer_brake_engaged) + sum(flagger_gateway_brake_engaged or on() "
        "vector(0))",
        width=6,
        warning=1,
        critical=1,
    ),
    series(
        "Declines held for people",
        "Declines a second that the brakes turned into reviews.",
        "ops",
        [
            (
                f"sum(rate(flagger_streamer_braked_total{{{_ALL}}}{_RATE})) "
                f"+ sum(rate(flagger_gateway_braked_total{_RATE}) or on() vector(0))",
                "held",
            )
        ],
        width=18,
    ),
]

DRIFT = [
    number(
        "Drift alarms",
        "Kinds of drift (feature, score, unknown) that are beyond their limit now.",
        "short",
        f"sum(max by (kind) (flagger_streamer_drift_alarm{{{_ALL}}}))",
        width=6,
        warning=1,
    ),
    number(
        "Looked at for drift",
        "Decided transactions a second that are compared with the training's days; bounded by "
        "FLAGGER_DRIFT_ROWS_PER_S for each streamer.",
        "ops",
        f"sum(rate(flagger_streamer_drift_rows_total{{{_ALL}}}{_RATE}))",
        width=6,
    ),
    number(
        "Late transactions",
        "Share of transactions that are older than their customer's newest one.",
        "percentunit",
        f"sum(rate(flagger_streamer_late_total{{{_ALL}}}{_RATE})) "
        f"/ (sum(rate({_DECIDED}{{{_ALL}}}{_RATE})) > 0) or on() vector(0)",
        width=6,
        warning=0.05,
    ),
    number(
        "PSI of the score",
        "Population stability index of the scores against the days on which the version was "
        "judged; from 0.1 on they have changed.",
        "short",
        f'max(flagger_streamer_drift_psi{{{_ALL}, feature="score"}}) or on() vector(0)',
        width=6,
        warning=0.1,
        critical=0.25,
    ),
    series(
        "PSI, the ten largest",
        "Population stability index of features and score; clock and age columns drift by nature "
        "and raise no alarm.",
        "short",
        [
            (
                f"topk(10, max by (feature) (flagger_streamer_drift_psi{{{_ALL}}})) "
                "or on() vector(0)",
                "{{feature}}",
            )
        ],
        limit=0.1,
    ),
    series(
        "KS distance, the ten largest",
        "Largest difference of the two distributions of a feature's known values.",
        "percentunit",
        [
            (
                f"topk(10, max by (feature) (flagger_streamer_drift_ks{{{_ALL}}})) "
                "or on() vector(0)",
                "{{feature}}",
            )
        ],
    ),
    series(
        "Missing values, the ten largest",
        "Share of transactions for which a feature cannot be known.",
        "percentunit",
        [
            (
                f"topk(10, max by (feature) (flagger_streamer_drift_missing_share{{{_ALL}}})) "
                "or on() vector(0)",
                "{{feature}}",
            )
        ],
    ),
    series(
        "Unknown categories",
        "absent: the field was not sent; new: training has not seen the value.",
        "percentunit",
        [
            (
                f"max by (field, kind) (flagger_streamer_drift_unknown_share{{{_ALL}}}) "
                "or on() vector(0)",
                "{{field}} {{kind}}",
            )
        ],
    ),
]

TRIALS = [
    series(
        "Versions in use",
        "Streamers by role and version: live, shadow (scores, decides nothing), canary (decides a "
        "share of the customers).",
        "short",
        [
            (
                f"count by (role, version) (flagger_streamer_model_info{{{_ALL}}})",
                "{{role}} {{version}}",
            )
        ],
    ),
    series(
        "Shadow: agreement",
        "Share of compared transactions for which the shadow wants the live version's decision; "
        "0 without a shadow. Streamers also compare what the gateway decided.",
        "percentunit",
        [
            (f"({_agreed(door)}) / ({_compared(door)} > 0) or on() vector(0)", door)
            for door in _DOORS
        ],
    ),
    series(
        "Shadow: alert rate beside the live version's",
        "Share of the compared transactions that each would flag.",
        "percentunit",
        [
            (
                f"{_compared(door, other)} / ({_compared(door)} > 0) or on() vector(0)",
                f"{door} {name}",
            )
            for door in _DOORS
            for name, other in (
                ("live", ', live!="approve"'),
                ("shadow", ', shadow!="approve"'),
            )
        ],
    ),
    series(
        "Shadow: difference of scores",
        "Percentiles of the distance between both scores, requests a second that the shadow did "
        "not answer, and what the gateway did not compare, a second and why.",
        "short",
        [
            *(
                (f"({expr} >= 0) or on() vector(0)", legend)
                for expr, legend in quantiles("flagger_streamer_shadow_score_difference", _ALL)
            ),
            (f"sum(rate(flagger_streamer_shadow_errors_total{{{_ALL}}}{_RATE}))", "errors"),
            (
                f"sum by (reason) (rate(flagger_gateway_shadow_skipped_total{{{_ALL}}}{_RATE}))",
                "gateway {{reason}}",
            ),
        ],
    ),
    series(
        "Canary: alert rate by group",
        "Share of the models' decisions that are flags, of the candidate and of the live version; "
        "0 without a canary.",
        "percentunit",
        [
            (
                f'sum(rate(flagger_{door}_canary_decisions_total{{group="{group}", '
                f'decision!="approve"}}{_RATE})) / (sum(rate(flagger_{door}_canary_decisions_total'
                f'{{group="{group}"}}{_RATE})) > 0) or on() vector(0)',
                f"{door} {group}",
            )
            for door in _DOORS
            for group in ("live", "candidate")
        ],
    ),
    series(
        "Canary: failures and stops",
        "Requests a second that the candidate failed or answered too late, and canaries that "
        "stopped by themselves within the last hour.",
        "short",
        [
            (f"sum(rate(flagger_streamer_canary_failures_total{_RATE}))", "streamer failures"),
            (f"sum(rate(flagger_gateway_canary_failures_total{_RATE}))", "gateway failures"),
            ("sum(increase(flagger_streamer_canary_stopped_total[1h]))", "streamer stops"),
            ("sum(increase(flagger_gateway_canary_stopped_total[1h]))", "gateway stops"),
        ],
    ),
]
