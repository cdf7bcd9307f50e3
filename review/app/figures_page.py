"""The desk's figures: how fast, how many, how right."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from review.app.context import Desk, now_ms, require_analyst, told_errors, zone
from review.app.words import duration, money
from review.kpis import Figures, Spread, compute_figures

__all__ = ["show"]

_DAYS = 14


def show(desk: Desk) -> None:
    """Show the figures of the last two weeks."""
    _figures(desk)


@st.fragment(run_every=30.0)
def _figures(desk: Desk) -> None:
    with told_errors():
        require_analyst(desk)
        _show_figures(desk)


def _show_figures(desk: Desk) -> None:
    found = compute_figures(desk.engine, now_ms, zone(), _DAYS)
    _cards(found)
    left, right = st.columns([2, 1], gap="large")
    with left:
        st.subheader("Reviews a day", anchor=False)
        st.altair_chart(_days_chart(found), height=280)
    with right:
        st.subheader("Decisions this week", anchor=False)
        if found.by_analyst:
            names = pd.DataFrame(found.by_analyst.items(), columns=["Analyst", "Decisions"])
            st.dataframe(names, hide_index=True)
        else:
            st.caption("Nobody has decided a case in the last 7 days.")


def _cards(found: Figures) -> None:
    top = st.columns(3)
    top[0].metric("Waiting", f"{found.waiting:,}", border=True, height="stretch")
    top[1].metric(
        "Expected loss that waits",
        money(found.at_risk),
        border=True,
        height="stretch",
        help="Sum of risk x amount of the open cases, currencies added as they are.",
    )
    top[2].metric(
        "Oldest that nobody has taken",
        duration(found.oldest_s),
        border=True,
        height="stretch",
    )
    low = st.columns(4)
    _time_card(low[0], "Time to first look", found.first_look)
    _time_card(low[1], "Time to decision", found.decision)
    precise = "-" if found.precision is None else f"{found.precision:.0%}"
    low[2].metric(
        "Precision this week",
        precise,
        delta=f"of {found.precision_of:,} decided",
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help="Share of confirmed frauds among the cases decided in the last 7 days.",
    )
    low[3].metric(
        "Fraud confirmed this week",
        money(found.prevented),
        border=True,
        height="stretch",
        help="Sum of their amounts, currencies added as they are.",
    )


def _time_card(column: DeltaGenerator, title: str, spread: Spread) -> None:
    column.metric(
        title,
        duration(spread.median_s),
        delta=f"9 in 10 within {duration(spread.p90_s)}",
        delta_color="off",
        delta_arrow="off",
        border=True,
        height="stretch",
        help=f"Median of {spread.count:,} cases of the last {_DAYS} days, from the flag.",
    )


def _days_chart(found: Figures) -> Any:
    rows = [
        {"day": f"{count.day:%d %b}", "outcome": name, "cases": number}
        for count in found.days
        for name, number in (("fraud", count.confirmed), ("dismissed", count.dismissed))
    ]
    return (
        alt.Chart(pd.DataFrame(rows))
        .mark_bar()
        .encode(
            x=alt.X("day:O", title=None, sort=None, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("cases:Q", title=None, axis=alt.Axis(tickMinStep=1)),
            color=alt.Color(
                "outcome:N",
                scale=alt.Scale(domain=["fraud", "dismissed"], range=["#d9453d", "#2e9e67"]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            tooltip=["day", "outcome", "cases"],
        )
    )
