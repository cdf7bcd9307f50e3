"""Review desk: what waits for analysts, and whether flags and labels get through."""

from __future__ import annotations

from typing import Any

from grafana.board import make_board
from grafana.panels import number, series

__all__ = ["board"]

_ALL = 'instance=~"$instance"'
_RATE = "[$__rate_interval]"
_OPEN = f'flagger_desk_cases{{{_ALL}, state=~"new|claimed|escalated"}}'

_NUMBERS = [
    number(
        "Open cases",
        "Cases that nobody has confirmed or dismissed yet.",
        "short",
        f"max(sum by (instance) ({_OPEN}))",
        width=6,
    ),
    number(
        "Oldest case that nobody has taken",
        "Hours of it mean that more is flagged than analysts can look at: raise the threshold, or "
        "ask for fewer reviews a day.",
        "s",
        f"max(flagger_desk_oldest_new_seconds{{{_ALL}}})",
        width=6,
        warning=3_600,
        critical=14_400,
    ),
    number(
        "Flags on their way",
        "Alerts in Kafka that are not cases yet.",
        "short",
        f"sum(flagger_desk_lag_messages{{{_ALL}}})",
        width=6,
        warning=100,
        critical=10_000,
    ),
    number(
        "Labels on their way",
        "What analysts decided and Kafka has not taken yet: it is in the case store until then.",
        "short",
        f"max(flagger_desk_labels_waiting{{{_ALL}}})",
        width=6,
        warning=10,
        critical=100,
    ),
]

_FLOW = [
    series(
        "Cases by state",
        "As the store holds them. Confirmed and dismissed only grow.",
        "short",
        [(f"max by (state) (flagger_desk_cases{{{_ALL}}})", "{{state}}")],
    ),
    series(
        "Transaction to case on disk",
        "From the transaction's message to the case that an analyst sees; the promise is two "
        "seconds.",
        "s",
        [
            (
                f"histogram_quantile({share}, sum by (le) "
                f"(rate(flagger_desk_event_to_case_seconds_bucket{{{_ALL}}}{_RATE})))",
                name,
            )
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ],
        limit=2.0,
    ),
    series(
        "Flags in, labels out",
        "A second: new cases, flags whose case was there already, labels that Kafka acknowledged.",
        "ops",
        [
            (f"sum(rate(flagger_desk_cases_stored_total{{{_ALL}}}{_RATE}))", "new cases"),
            (f"sum(rate(flagger_desk_repeats_total{{{_ALL}}}{_RATE}))", "repeats"),
            (f"sum(rate(flagger_desk_labels_sent_total{{{_ALL}}}{_RATE}))", "labels"),
        ],
    ),
    series(
        "What went wrong",
        "A second: messages that are no alert, failed calls to the case store, labels that Kafka "
        "did not take. The last two are tried again.",
        "ops",
        [
            (f"sum(rate(flagger_desk_refused_total{{{_ALL}}}{_RATE}))", "refused"),
            (f"sum(rate(flagger_desk_store_errors_total{{{_ALL}}}{_RATE}))", "case store"),
            (f"sum(rate(flagger_desk_label_errors_total{{{_ALL}}}{_RATE}))", "labels"),
        ],
    ),
    series(
        "What the consumer waits for",
        "1 while Kafka, the case store, or Valkey (history) does not answer. Nothing is lost: the "
        "topics keep flags and payments, the case store the labels.",
        "short",
        [(f"flagger_desk_waiting{{{_ALL}}}", "{{instance}} {{part}}")],
    ),
    series(
        "Payments beside cases",
        "Payments a second that went into the lists of the newest ones of each customer and "
        "terminal, and messages that these lists leave out: no transactions, or not in JSON.",
        "ops",
        [
            (f"sum(rate(flagger_desk_history_payments_total{{{_ALL}}}{_RATE}))", "kept"),
            (f"sum(rate(flagger_desk_history_unreadable_total{{{_ALL}}}{_RATE}))", "left out"),
        ],
    ),
    series(
        "Claims that ran out",
        "Cases a minute that became free again because their analyst did not decide in time.",
        "short",
        [(f"sum(rate(flagger_desk_claims_expired_total{{{_ALL}}}{_RATE})) * 60", "claims")],
    ),
]


def board() -> Any:
    """Return the board."""
    return make_board(
        "flagger-desk",
        "Fraud Flagger: review desk",
        "What waits for analysts, and whether flags and labels get through.",
        {"Now": _NUMBERS, "Flow": _FLOW},
    )
