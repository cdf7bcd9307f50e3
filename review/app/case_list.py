"""The list of cases: a table in HTML that knows its rows by transaction id.

Streamlit's own table is a canvas that knows rows by their number: while flags arrive, the row under
the pointer would be another case than the one that was clicked, and no screen reader sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

from review.app.words import NOT_FLAGGED, headline_reasons, money, place, state_words
from review.history import Payment
from review.tables import Case

__all__ = ["ListEvent", "case_list"]

_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class ListEvent:
    """What the analyst did: the case to open ("": none), and the cases that are ticked."""

    opened: str
    selected: list[str]


@cache
def _component() -> Any:
    return st.components.v2.component(
        "flagger_case_list",
        css=(_HERE / "case_list.css").read_text(),
        js=(_HERE / "case_list.js").read_text(),
    )


def case_list(
    cases: Sequence[Case | Payment],
    *,
    key: str,
    now_ms: int,
    selectable: bool = False,
    live: bool = False,
    current: str = "",
    likeness: dict[str, float] | None = None,
    generation: int = 0,
    question: str = "",
) -> ListEvent:
    """Show cases in the given order.

    Args:
        cases: The rows; payments that are no cases cannot be opened.
        key: Name of this list on the page.
        now_ms: The server's time, for ages and claims.
        selectable: Rows can be ticked, with the mouse or X.
        live: Rows that arrive later are marked for a moment.
        current: Transaction id of a row to emphasise.
        likeness: Transaction id -> likeness 0 to 1, as a column of its own.
        generation: Another number than before unticks all rows.
        question: What the rows answer; rows that come with another one are not marked.
    """
    rows = [
        _row(case, now_ms, likeness) if isinstance(case, Case) else _payment_row(case)
        for case in cases
    ]
    result = _component()(
        key=key,
        data={
            "rows": rows,
            "now_ms": now_ms,
            "selectable": selectable,
            "live": live,
            "current": current,
            "likeness": likeness is not None,
            "payments": any(row["plain"] for row in rows),
            "generation": generation,
            "question": question,
        },
        default={"selected": []},
        on_selected_change=_nothing,
        on_opened_change=_nothing,
    )
    here = {case.transaction_id for case in cases}
    selected = [i for i in (result.get("selected") or []) if i in here]
    return ListEvent(str(result.get("opened") or ""), selected)


def _nothing() -> None:
    """Streamlit passes on only what has a callback."""


def _payment_row(payment: Payment) -> dict[str, Any]:
    return {
        "id": payment.transaction_id,
        "plain": True,
        "decision": "",
        "score": None,
        "source": "",
        "amount": money(payment.amount, payment.currency),
        "loss": "",
        "place": place(payment),
        "customer": payment.customer_id,
        "terminal": payment.terminal_id,
        "why": "",
        "flagged_at_ms": payment.event_time_ms,
        "state": NOT_FLAGGED,
        "kind": "plain",
        "likeness": None,
    }


def _row(case: Case, now_ms: int, likeness: dict[str, float] | None) -> dict[str, Any]:
    return {
        "id": case.transaction_id,
        "plain": False,
        "decision": case.decision,
        "score": case.score,
        "source": case.decision_source,
        "amount": money(case.amount, case.currency),
        "loss": money(case.expected_loss),
        "place": place(case),
        "customer": case.customer_id,
        "terminal": case.terminal_id,
        "why": headline_reasons(case),
        "flagged_at_ms": case.flagged_at_ms,
        "state": state_words(case, now_ms),
        "kind": state_words(case, now_ms).partition(" ")[0],
        "likeness": None if likeness is None else likeness[case.transaction_id],
    }
