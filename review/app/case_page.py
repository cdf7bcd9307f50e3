"""One case: what was flagged and why, what is known around it, and the decision."""

from __future__ import annotations

import streamlit as st

from review.app.case_chart import amount_chart, chart_legend
from review.app.case_list import case_list
from review.app.context import Desk, now_ms, require_analyst, told_errors, zone
from review.app.look import facts, pill, plain, text
from review.app.surroundings import around
from review.app.words import DECISION_WORDS, duration, moment, money, place, state_words
from review.life import MAX_NOTE, Action, Analyst, refusal_of
from review.queries import Filter, Order
from review.tables import Case, State

__all__ = ["show"]

_REFRESH_S = 2.0
_ACTIONS: tuple[tuple[Action, str, str, str], ...] = (
    ("claim", "Claim", "T", ":material/back_hand:"),
    ("confirm", "Confirm fraud", "F", ":material/gpp_bad:"),
    ("dismiss", "Dismiss", "D", ":material/verified_user:"),
    ("escalate", "Escalate", "E", ":material/arrow_upward:"),
    ("release", "Release", "L", ":material/undo:"),
)
_ADVANCE = ("confirm", "dismiss", "escalate")
"""After these the next case opens by itself."""
_SAID = {
    "claim": "claimed",
    "release": "released",
    "confirm": "confirmed as fraud",
    "dismiss": "dismissed",
    "escalate": "escalated",
    "reopen": "reopened",
    "note": "wrote",
    "expire": "the claim ran out",
}


def show(desk: Desk, analyst: Analyst, case_id: str, which: Filter, order: Order) -> None:
    """Show a case with its buttons.

    Args:
        desk: The case store's parts.
        analyst: Who looks at it.
        case_id: Transaction id.
        which: The queue from which the next case comes.
        order: Its order.
    """
    case = desk.queries.find(case_id)
    if case is None:
        st.info("There is no such case.")
        if st.button("Queue", icon=":material/arrow_back:"):
            _open("")
        return
    if case.first_seen_at_ms is None:
        desk.life.seen(case_id)
    _head(case)
    _buttons(desk, analyst, case, which, order)
    left, right = st.columns([8, 5], gap="large")
    with left:
        _reasons(case)
        _surroundings(desk, case)
    with right:
        _facts(case)
        _notes(desk, analyst, case)
    _follow(desk, case_id, case.version)


def _open(case_id: str) -> None:
    if case_id:
        st.query_params["case"] = case_id
    else:
        st.query_params.clear()
    st.rerun(scope="app")


def _head(case: Case) -> None:
    if said := st.session_state.pop("said", ""):
        st.toast(plain(said))
    words = state_words(case, now_ms())
    claim = ""
    if words.startswith("claimed"):
        left_s = ((case.claimed_until_ms or 0) - now_ms()) / 1000
        claim = f'<span class="d-quiet">for {duration(left_s)} more</span>'
    risk = "not scored" if case.score is None else f"risk {case.score:.1%}"
    st.html(
        f'<div class="d-head"><b>{text(money(case.amount, case.currency))}</b>'
        f"{pill(case.decision, DECISION_WORDS.get(case.decision, case.decision))}"
        f"{pill(words.partition(' ')[0], words)}{claim}"
        f"<span>{risk} · expected loss {text(money(case.expected_loss))}</span>"
        f'<span class="d-quiet">{text(place(case))} · flagged '
        f"{duration((now_ms() - case.flagged_at_ms) / 1000)} ago</span></div>"
    )


def _buttons(desk: Desk, analyst: Analyst, case: Case, which: Filter, order: Order) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if st.button("Queue", icon=":material/arrow_back:", shortcut="Q"):
            _open("")
        if case.state in (State.CONFIRMED_FRAUD, State.DISMISSED):
            _button(desk, analyst, case, "reopen", "Reopen", "O", ":material/undo:", "")
        else:
            following = _next(desk, analyst, case, which, order)
            for action, label, key, icon in _ACTIONS:
                if action == "release" and case.claimed_by != analyst.name:
                    continue
                if action == "claim" and case.claimed_by == analyst.name:
                    label = "Extend claim"
                _button(desk, analyst, case, action, label, key, icon, following)
        if st.button("Next", icon=":material/arrow_forward:", shortcut="N"):
            _open(_next(desk, analyst, case, which, order))


def _button(
    desk: Desk,
    analyst: Analyst,
    case: Case,
    action: Action,
    label: str,
    key: str,
    icon: str,
    following: str,
) -> None:
    why_not = refusal_of(action, case, analyst, now_ms())
    pressed = st.button(
        label,
        icon=icon,
        shortcut=key,
        key=f"do-{action}",
        disabled=why_not is not None,
        help=why_not and why_not[0].upper() + why_not[1:] + ".",
    )
    if not pressed:
        return
    note = str(st.session_state.get(f"note-{case.transaction_id}", "")).strip()
    outcome = desk.life.act(action, [case.transaction_id], analyst, note)
    refused = outcome.refused.get(case.transaction_id)
    if refused is not None:
        st.session_state["said"] = f"Not done: {refused}."
        st.rerun(scope="app")
    _clear_note(case)
    st.session_state["said"] = f"{money(case.amount, case.currency)}: {_SAID[action]}."
    _open(
        following
        if action in _ADVANCE and st.session_state.get("advance", True)
        else case.transaction_id
    )


def _next(desk: Desk, analyst: Analyst, case: Case, which: Filter, order: Order) -> str:
    """Return the first case of the queue that this analyst may take; "" for none."""
    now = now_ms()
    for other in desk.queries.page(which, order).cases:
        is_other = other.transaction_id != case.transaction_id
        if is_other and refusal_of("claim", other, analyst, now) is None:
            return other.transaction_id
    return ""


def _reasons(case: Case) -> None:
    st.subheader("Why it was flagged", anchor=False)
    pairs = list(zip(case.reason_codes, case.reasons, strict=False))
    told = [reason for code, reason in pairs if code != "score"]
    policy = [reason for code, reason in pairs if code == "score"]
    items = "".join(f"<li>{text(reason[:1].upper() + reason[1:])}</li>" for reason in told)
    body = f'<ol class="d-reasons">{items}</ol>' if items else ""
    body += "".join(f'<p class="d-policy">{text(reason)}</p>' for reason in policy)
    st.html(body or "<p>The alert gives no reason.</p>")


def _surroundings(desk: Desk, case: Case) -> None:
    customer, terminal = around(desk, case, "customer"), around(desk, case, "terminal")
    similar = desk.queries.similar(case)
    of_customer, of_terminal = customer.newest(), terminal.newest()
    if of_customer or of_terminal:
        st.subheader("Amounts around it", anchor=False)
        st.html(chart_legend())
        st.altair_chart(amount_chart(case, of_customer, of_terminal, zone()), height=210)
    tabs = st.tabs(
        [
            f"Customer ({len(customer.flags)} flagged, {len(customer.others)} not)",
            f"Terminal ({len(terminal.flags)} flagged, {len(terminal.others)} not)",
            f"Similar decided cases ({len(similar)})",
        ]
    )
    opened = ""
    for tab, rows, note, name in (
        (tabs[0], of_customer, customer.note, "customer"),
        (tabs[1], of_terminal, terminal.note, "terminal"),
    ):
        with tab:
            if rows:
                opened = case_list(rows, key=name, now_ms=now_ms()).opened or opened
            st.caption(note if rows else f"No other of this {name}. {note}")
    with tabs[2]:
        if similar:
            frauds = sum(s.case.state == State.CONFIRMED_FRAUD for s in similar)
            st.caption(f"{frauds} of these {len(similar)} were fraud.")
            event = case_list(
                [s.case for s in similar],
                key="similar",
                now_ms=now_ms(),
                likeness={s.case.transaction_id: s.likeness for s in similar},
            )
            opened = event.opened or opened
        else:
            st.caption("No decided case is like this one yet.")
    if opened:
        _open(opened)


def _facts(case: Case) -> None:
    st.subheader("The transaction", anchor=False)
    model = f"{case.model} {case.model_version}".strip()
    st.html(
        facts(
            [
                ("Transaction", case.transaction_id),
                ("Time", moment(case.event_time_ms, zone())),
                ("Customer", case.customer_id),
                ("Terminal", case.terminal_id),
                ("Channel", case.channel),
                ("Country", case.country),
                ("Merchant category", case.merchant_category),
                ("Flagged by", f"{case.decision_source}{f' · {model}' if model else ''}"),
                ("Policy", case.policy_version),
            ]
        )
    )


def _clear_note(case: Case) -> None:
    st.session_state["clear-note"] = case.transaction_id


def _notes(desk: Desk, analyst: Analyst, case: Case) -> None:
    st.subheader("Notes and trail", anchor=False)
    key = f"note-{case.transaction_id}"
    if st.session_state.pop("clear-note", "") == case.transaction_id:
        st.session_state[key] = ""
    note = st.text_area(
        "Note",
        key=key,
        height=80,
        max_chars=MAX_NOTE,
        placeholder="Goes with the next button, or by itself",
        label_visibility="collapsed",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        if st.button("Add note", icon=":material/edit_note:") and note.strip():
            desk.life.note(case.transaction_id, analyst, note)
            _clear_note(case)
            st.rerun(scope="app")
        st.toggle(
            "Open the next case after a decision",
            value=True,
            key="advance",
            persist_state="session",
        )
    items = []
    for event in desk.queries.events(case.transaction_id):
        said = _SAID.get(event.action, event.action)
        words = f"<p>{text(event.note)}</p>" if event.note else ""
        when = moment(event.at_ms, zone())
        items.append(
            f'<li><b>{text(event.who)}</b> {text(said)} <span class="d-quiet">{when}</span>'
            f"{words}</li>"
        )
    flagged = moment(case.flagged_at_ms, zone())
    items.append(f'<li>Flagged <span class="d-quiet">{flagged}</span></li>')
    st.html(f'<ul class="d-trail">{"".join(items)}</ul>')


@st.fragment(run_every=_REFRESH_S)
def _follow(desk: Desk, case_id: str, version: int) -> None:
    """Show what others do to the case while it is open."""
    with told_errors():
        require_analyst(desk)
        case = desk.queries.find(case_id)
        if case is not None and case.version != version:
            st.rerun(scope="app")
