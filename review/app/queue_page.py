"""The queue: what waits, the costliest first, live; and what is done to several cases at once."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import streamlit as st

from review.app import case_page
from review.app.case_list import case_list
from review.app.context import Desk, now_ms, require_analyst, told_errors
from review.app.look import figure_strip, plain
from review.app.words import duration, money
from review.life import Action, Analyst, Outcome
from review.queries import RECENT_DAYS, Filter, Order, Page

__all__ = ["show"]

_REFRESH_S = 1.0
_ROWS = 50
_CHOICES_S = 60
"""How long the filters' lists of channels and countries are kept: they read the whole table."""
_VIEWS = {
    "open": "Waiting",
    "mine": "Mine",
    "escalated": "Escalated",
    "decided": "Decided",
    "all": "All",
}
_ORDERS = {"expected_loss": "Expected loss", "newest": "Newest"}
_BULK: tuple[tuple[Action, str, str], ...] = (
    ("claim", "Claim", ":material/back_hand:"),
    ("confirm", "Confirm fraud", ":material/gpp_bad:"),
    ("dismiss", "Dismiss", ":material/verified_user:"),
    ("escalate", "Escalate", ":material/arrow_upward:"),
)


def show(desk: Desk, analyst: Analyst) -> None:
    """Show the queue, or the case that the address names."""
    case_id = st.query_params.get("case", "")
    if case_id:
        which, order = _remembered(analyst)
        case_page.show(desk, analyst, case_id, which, order)
        return
    which, order = _filters(desk, analyst)
    st.session_state["filter"] = (which, order)
    _live_list(desk, which, order)


def _remembered(analyst: Analyst) -> tuple[Filter, Order]:
    found = st.session_state.get("filter")
    return found or (Filter(analyst=analyst.name), "expected_loss")


def _choices(desk: Desk) -> tuple[list[str], list[str]]:
    read_s, choices = st.session_state.get("choices", (-math.inf, ([], [])))
    if time.monotonic() - read_s > _CHOICES_S:
        choices = desk.queries.choices()
        st.session_state["choices"] = (time.monotonic(), choices)
    found: tuple[list[str], list[str]] = choices
    return found


def _filters(desk: Desk, analyst: Analyst) -> tuple[Filter, Order]:
    channels, countries = _choices(desk)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="xsmall"):
        view = st.segmented_control(
            "Show",
            list(_VIEWS),
            default="open",
            required=True,
            format_func=_VIEWS.__getitem__,
            key="view",
            persist_state="session",
        )
        decision = st.pills(
            "Decision",
            ["review", "decline"],
            selection_mode="multi",
            format_func={"review": "Review", "decline": "Declined"}.__getitem__,
            key="decision",
            persist_state="session",
        )
        channel = _some_of("Channel", channels, width=140)
        country = _some_of("Country", countries, width=120)
        least = st.number_input(
            "Amount from",
            min_value=0.0,
            value=None,
            step=50.0,
            width=125,
            key="amount",
            persist_state="session",
        )
        words = st.text_input(
            "Id begins with",
            placeholder="Transaction, customer ...",
            width=170,
            key="text",
            persist_state="session",
        )
        order = st.selectbox(
            "Order",
            list(_ORDERS),
            format_func=_ORDERS.__getitem__,
            width=145,
            key="order",
            persist_state="session",
        )
    which = Filter(
        view=cast(Any, view or "open"),
        analyst=analyst.name,
        decisions=tuple(decision or ()),
        channels=channel,
        countries=country,
        min_amount=least,
        text=words.strip(),
    )
    return which, cast(Order, order)


def _some_of(what: str, choices: list[str], *, width: int) -> tuple[str, ...]:
    chosen = st.multiselect(
        what, choices, placeholder="All", width=width, key=what.lower(), persist_state="session"
    )
    return tuple(chosen)


@st.fragment(run_every=_REFRESH_S)
def _live_list(desk: Desk, which: Filter, order: Order) -> None:
    with told_errors():
        _show_list(desk, require_analyst(desk), which, order)


def _show_list(desk: Desk, analyst: Analyst, which: Filter, order: Order) -> None:
    page = desk.queries.page(which, order, _ROWS)
    _strip(page)
    bar = st.container(key="bulk")
    event = case_list(
        page.cases,
        key="queue",
        now_ms=now_ms(),
        selectable=True,
        live=True,
        generation=st.session_state.get("generation", 0),
        question=f"{which} {order}",
    )
    if page.count > len(page.cases):
        st.caption(f"The first {len(page.cases)} of {page.count:,}. Narrow them with the filters.")
    if which.view in ("decided", "all") and not which.text:
        st.caption(f"Flagged in the last {RECENT_DAYS} days. Older ones are found by their id.")
    with bar:
        if event.selected:
            _bulk_bar(desk, analyst, event.selected)
        else:
            _show_outcome()
            st.caption(
                "Click a row to open it, tick rows to act on several at once. "
                "Keys: J and K move, X ticks, Enter opens."
            )
    if event.opened:
        st.query_params["case"] = event.opened
        st.rerun(scope="app")


def _strip(page: Page) -> None:
    newest = max((case.flagged_at_ms for case in page.cases), default=None)
    age = duration(None if newest is None else (now_ms() - newest) / 1000)
    st.html(
        figure_strip(
            [
                (f"{page.count:,}", "cases"),
                (money(page.amount), "amount"),
                (money(page.expected_loss), "expected loss"),
                (age, "since the newest flag"),
            ]
        )
    )


def _bulk_bar(desk: Desk, analyst: Analyst, selected: list[str]) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.markdown(f"**{len(selected)} selected**", width="content")
        note = st.text_input(
            "Note", placeholder="Note (optional)", label_visibility="collapsed", width=300
        )
        for action, label, icon in _BULK:
            if st.button(label, icon=icon, key=f"bulk-{action}"):
                outcome = desk.life.act(action, selected, analyst, note.strip())
                st.session_state["outcome"] = (label, outcome)
                st.session_state["generation"] = st.session_state.get("generation", 0) + 1
                st.rerun(scope="fragment")


def _show_outcome() -> None:
    label, outcome = st.session_state.pop("outcome", ("", Outcome()))
    if outcome.done:
        st.toast(f"{label}: {len(outcome.done)} done", icon=":material/check:")
    for transaction_id, why in list(outcome.refused.items())[:5]:
        st.toast(f"{plain(transaction_id)}: {plain(why)}", icon=":material/block:", duration="long")
    if len(outcome.refused) > 5:
        st.toast(f"{len(outcome.refused) - 5} more were refused", icon=":material/block:")
