"""The amounts of a customer's and a terminal's payments over time, this case among them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from typing import Any

import altair as alt
import pandas as pd

from review.app.words import NOT_FLAGGED, STATE_WORDS
from review.history import Payment
from review.tables import Case, State

__all__ = ["amount_chart", "chart_legend"]

_THIS, _CUSTOMER, _TERMINAL = "this case", "same customer", "same terminal"
_SHAPES = {_THIS: ("diamond", "◆"), _CUSTOMER: ("circle", "●"), _TERMINAL: ("square", "■")}
"""Vega's name of a shape, and the sign like it."""
_OUTCOMES = {
    State.CONFIRMED_FRAUD: "fraud",
    State.DISMISSED: "dismissed",
}
_COLOURS = {
    "open": "#5b8def",
    "fraud": "#d9453d",
    "dismissed": "#2e9e67",
    NOT_FLAGGED: "#98a5b3",
}


def chart_legend() -> str:
    """Return what the chart's shapes and colours mean, in HTML: Vega's two legends waste height."""
    shapes = "".join(f"<span><b>{sign}</b> {words}</span>" for words, (_, sign) in _SHAPES.items())
    colours = "".join(
        f'<span><i style="background:{colour}"></i>{words}</span>'
        for words, colour in _COLOURS.items()
    )
    return f'<div class="d-legend">{shapes}{colours}</div>'


def amount_chart(
    case: Case,
    customer: Sequence[Case | Payment],
    terminal: Sequence[Case | Payment],
    zone: tzinfo,
) -> Any:
    """Return a chart of amount over time; colour is the outcome, shape whose payment it is."""
    ids = {case.transaction_id}
    rows = [_row(case, _THIS, zone)]
    for cases, whose in ((customer, _CUSTOMER), (terminal, _TERMINAL)):
        for other in cases:
            if other.transaction_id not in ids:
                ids.add(other.transaction_id)
                rows.append(_row(other, whose, zone))
    frame = pd.DataFrame(rows)
    return (
        alt.Chart(frame)
        .mark_point(filled=True, opacity=0.9)
        .encode(
            x=alt.X("time:T", title=None, axis=alt.Axis(format="%d %b %H:%M", labelOverlap=True)),
            y=alt.Y("amount:Q", title="Amount"),
            color=alt.Color(
                "outcome:N",
                scale=alt.Scale(domain=list(_COLOURS), range=list(_COLOURS.values())),
                legend=None,
            ),
            shape=alt.Shape(
                "whose:N",
                scale=alt.Scale(
                    domain=list(_SHAPES), range=[shape for shape, _ in _SHAPES.values()]
                ),
                legend=None,
            ),
            size=alt.condition(alt.datum.whose == _THIS, alt.value(220), alt.value(60)),
            tooltip=[
                alt.Tooltip("time:T", format="%d %b %Y %H:%M:%S"),
                alt.Tooltip("amount:Q", format=",.2f"),
                "whose",
                "state",
            ],
        )
    )


def _row(case: Case | Payment, whose: str, zone: tzinfo) -> dict[str, object]:
    # Altair shows times without a zone as they stand: the analyst's own.
    moment = datetime.fromtimestamp(case.event_time_ms / 1000, zone).replace(tzinfo=None)
    state = State(case.state) if isinstance(case, Case) else None
    return {
        "time": moment,
        "amount": case.amount,
        "whose": whose,
        "outcome": _OUTCOMES.get(state, "open") if state else NOT_FLAGGED,
        "state": STATE_WORDS[state] if state else NOT_FLAGGED,
    }
