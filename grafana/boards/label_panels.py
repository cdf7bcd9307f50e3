"""Panels of the model health board: what mature labels say, from `flagger drift watch`."""

from __future__ import annotations

from grafana.panels import number, series

__all__ = ["MATURE_LABELS"]

_ALL = 'instance=~"$instance"'


def _largest(name: str) -> str:
    return f"max(flagger_labels_{name}{{{_ALL}}})"


MATURE_LABELS = [
    number(
        "Precision of flags",
        "Share of frauds among the flagged of the mature days that are judged together; from the "
        "topics, so it holds every label, not only the desk's.",
        "percentunit",
        _largest("precision"),
        width=6,
    ),
    number(
        "Recall of frauds",
        "Share of the frauds of the mature days that were flagged; late labels are in it, which "
        "is why the newest days are not.",
        "percentunit",
        _largest("recall"),
        width=6,
    ),
    number(
        "Below their limit",
        "Measures (precision, recall) below the limit that `flagger drift watch` was given.",
        "short",
        f"sum(max by (measure) (flagger_labels_alarm{{{_ALL}}}))",
        width=6,
        warning=1,
    ),
    number(
        "Age of the newest judged day",
        "Grows by a day each day when labels stop; the maturity is in it.",
        "s",
        f"time() - {_largest('newest_judged_day_timestamp_seconds')}",
        width=6,
    ),
    series(
        "Precision and recall by mature labels",
        "Of all mature days in the window together; a slow fall is drift, or fraud that changed "
        "its ways.",
        "percentunit",
        [(_largest("precision"), "precision"), (_largest("recall"), "recall")],
    ),
    series(
        "What they rest on",
        "Decisions, flags and frauds of the judged days. With few frauds both shares jump by "
        "chance.",
        "short",
        [
            (_largest(name), name)
            for name in ("decisions", "flagged", "frauds", "caught", "judged_days")
        ],
    ),
    series(
        "Days without a label",
        "Days old enough to be judged that no label has reached, and days given up because too "
        "much is remembered.",
        "short",
        [
            (_largest("unlabelled_days"), "without a label"),
            (_largest("forgotten_days_total"), "given up"),
            (f"sum(flagger_labels_waiting{{{_ALL}}})", "parts waited for"),
        ],
    ),
    series(
        "Read from the topics",
        "Decisions and labels that the watch reads, those that it cannot read, and how many it "
        "remembers (10 million at most).",
        "short",
        [
            (
                f"sum by (topic) (rate(flagger_labels_messages_total{{{_ALL}}}[$__rate_interval]))",
                "{{topic}} a second",
            ),
            (
                f"sum(rate(flagger_labels_refused_total{{{_ALL}}}[$__rate_interval])) "
                "or on() vector(0)",
                "refused a second",
            ),
            (_largest("held"), "remembered"),
        ],
    ),
]
