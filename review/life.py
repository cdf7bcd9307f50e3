"""The life of a case: who may do what to it, and what is written when somebody does.

    new ──claim──> claimed ──confirm──> confirmed_fraud   (label: fraud)
     ^                │ ├────dismiss──> dismissed         (label: no fraud)
     └────release─────┘ └───escalate──> escalated ──claim, by a lead──> claimed ...

One analyst at a time: a case that somebody holds is refused to all others until the claim runs out.
Confirming and dismissing need no claim of their own: on a free case they take it and decide it in
one step. `reopen` takes a decision back, by its analyst or a lead; the next decision's label then
corrects the first one's.

The case, its audit entry and its label are written in one database transaction. Each case has a
version, so of two analysts who act on the same version exactly one succeeds; the other one's
request is judged again on what the case then is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from flagger.errors import CaseStoreError
from review.database import transaction
from review.tables import Case, Event, Label, State

__all__ = [
    "ACTIONS",
    "MAX_BULK",
    "MAX_NOTE",
    "SYSTEM",
    "Action",
    "Analyst",
    "CaseLife",
    "Outcome",
    "refusal_of",
]

Action = Literal["claim", "release", "confirm", "dismiss", "escalate", "reopen"]
ACTIONS: tuple[Action, ...] = get_args(Action)
Role = Literal["analyst", "lead"]

SYSTEM = "system"
"""Who did it, in the audit trail, where no person did."""
MAX_BULK = 200
"""Most cases of one bulk action."""
MAX_NOTE = 4_000
"""Longest note, characters; longer ones are refused."""
_TRIES = 5
"""How often an action is judged anew when others change the case at the same moment."""
_DECIDED = (State.CONFIRMED_FRAUD, State.DISMISSED)
_OUTCOMES = {"confirm": State.CONFIRMED_FRAUD, "dismiss": State.DISMISSED}
_WORDS = {State.CONFIRMED_FRAUD: "confirmed as fraud", State.DISMISSED: "dismissed"}


@dataclass(frozen=True, slots=True)
class Analyst:
    """Who acts; leads may also decide escalated cases and reopen those of others."""

    name: str
    role: Role = "analyst"


@dataclass(slots=True)
class Outcome:
    """What became of an action on several cases.

    Attributes:
        done: Transaction ids on which it was done.
        refused: Transaction id -> why not, for a person.
    """

    done: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class CaseLife:
    """Does what analysts ask for.

    Args:
        engine: The case store.
        clock_ms: Returns the current time, epoch milliseconds.
        claim_ms: How long a claim holds.
    """

    def __init__(self, engine: Engine, clock_ms: Callable[[], int], claim_ms: int) -> None:
        self._engine = engine
        self._clock_ms = clock_ms
        self._claim_ms = claim_ms

    def act(self, action: Action, ids: Sequence[str], who: Analyst, note: str = "") -> Outcome:
        """Do one thing to each of the cases; one that is refused does not stop the others.

        Args:
            action: What to do.
            ids: Transaction ids, at most MAX_BULK.
            who: Who does it.
            note: Kept with it in the audit trail; at most MAX_NOTE characters.

        Raises:
            CaseStoreError: The database is away; cases in `ids` before that moment are done.
        """
        if len(ids) > MAX_BULK:
            return Outcome(refused=dict.fromkeys(ids, f"more than {MAX_BULK} cases at a time"))
        if len(note) > MAX_NOTE:
            return Outcome(refused=dict.fromkeys(ids, f"the note is over {MAX_NOTE} characters"))
        outcome = Outcome()
        for transaction_id in ids:
            refusal = self._act_on(action, transaction_id, who, note)
            if refusal is None:
                outcome.done.append(transaction_id)
            else:
                outcome.refused[transaction_id] = refusal
        return outcome

    def note(self, transaction_id: str, who: Analyst, text: str) -> None:
        """Add a note to a case, whoever holds it.

        Raises:
            ValueError: The note is empty or longer than MAX_NOTE.
            CaseStoreError: There is no such case, or the database is away.
        """
        text = text.strip()
        if not 0 < len(text) <= MAX_NOTE:
            raise ValueError(f"A note has 1 to {MAX_NOTE} characters; this one has {len(text)}.")
        with transaction(self._engine) as session:
            case = session.get(Case, transaction_id)
            if case is None:
                raise CaseStoreError(f"There is no case {transaction_id}.")
            self._log(session, case, who.name, "note", case.state, text)

    def seen(self, transaction_id: str) -> None:
        """Take note that an analyst has opened a case, if it is the first time."""
        for _ in range(_TRIES):
            try:
                with transaction(self._engine) as session:
                    case = session.get(Case, transaction_id)
                    if case is not None and case.first_seen_at_ms is None:
                        case.first_seen_at_ms = self._clock_ms()
            except StaleDataError:
                continue
            return

    def release_expired(self) -> int:
        """Give cases back whose claims have run out; return how many."""
        now_ms = self._clock_ms()
        with transaction(self._engine) as session:
            expired = select(Case.transaction_id).where(
                Case.state == State.CLAIMED, Case.claimed_until_ms <= now_ms
            )
            ids = list(session.scalars(expired.limit(MAX_BULK)))
        return sum(self._expire(transaction_id, now_ms) for transaction_id in ids)

    def _expire(self, transaction_id: str, now_ms: int) -> bool:
        try:
            with transaction(self._engine) as session:
                case = session.get(Case, transaction_id)
                if case is None or not _is_expired(case, now_ms):
                    return False
                before = case.state
                _let_go(case)
                self._log(session, case, SYSTEM, "expire", before)
        except StaleDataError:  # somebody acts on it just now
            return False
        return True

    def _act_on(self, action: Action, transaction_id: str, who: Analyst, note: str) -> str | None:
        for _ in range(_TRIES):
            try:
                with transaction(self._engine) as session:
                    case = session.get(Case, transaction_id)
                    if case is None:
                        return "there is no such case"
                    refusal = refusal_of(action, case, who, self._clock_ms())
                    if refusal is None:
                        self._do(session, action, case, who, note)
                    return refusal
            except StaleDataError:
                continue
        return "others change the case at this moment; try again"

    def _do(self, session: Session, action: Action, case: Case, who: Analyst, note: str) -> None:
        before, now_ms = case.state, self._clock_ms()
        if action in ("release", "reopen"):
            _let_go(case)
            case.decided_by = case.decided_at_ms = None
        else:
            if case.first_seen_at_ms is None:
                case.first_seen_at_ms = now_ms
            case.claimed_by = case.claimed_until_ms = None
            if action == "claim":
                case.state = State.CLAIMED
                case.claimed_by, case.claimed_until_ms = who.name, now_ms + self._claim_ms
            elif action == "escalate":
                case.state, case.escalated_by = State.ESCALATED, who.name
            else:
                case.state = _OUTCOMES[action]
                case.decided_by, case.decided_at_ms = who.name, now_ms
                session.add(_label(case, now_ms))
        self._log(session, case, who.name, action, before, note)

    def _log(
        self, session: Session, case: Case, who: str, action: str, before: str, note: str = ""
    ) -> None:
        session.add(
            Event(
                transaction_id=case.transaction_id,
                at_ms=self._clock_ms(),
                who=who,
                action=action,
                from_state=before,
                to_state=case.state,
                note=note,
            )
        )


def _label(case: Case, now_ms: int) -> Label:
    return Label(
        transaction_id=case.transaction_id,
        is_fraud=case.state == State.CONFIRMED_FRAUD,
        labelled_at_ms=now_ms,
        terminal_id=case.terminal_id,
        event_time_ms=case.event_time_ms,
    )


def _let_go(case: Case) -> None:
    """Make a case free for others; one that was escalated stays with the leads."""
    case.state = State.NEW if case.escalated_by is None else State.ESCALATED
    case.claimed_by = case.claimed_until_ms = None


def _is_expired(case: Case, now_ms: int) -> bool:
    return case.state == State.CLAIMED and (case.claimed_until_ms or 0) <= now_ms


def refusal_of(action: Action, case: Case, who: Analyst, now_ms: int) -> str | None:
    """Return why `who` may not do this to the case now; None: go ahead."""
    decided = case.state in _DECIDED
    if action == "reopen":
        if not decided:
            return "it is not decided"
        may = who.role == "lead" or case.decided_by == who.name
        return None if may else f"only {case.decided_by} or a lead may reopen it"
    if decided:
        return f"already {_WORDS[State(case.state)]} by {case.decided_by}"
    held = case.state == State.CLAIMED and not _is_expired(case, now_ms)
    if action == "release":
        mine = case.state == State.CLAIMED and case.claimed_by == who.name
        return None if mine else "you have not claimed it"
    if held and case.claimed_by != who.name:
        return f"{case.claimed_by} is working on it"
    if case.escalated_by is not None:
        if action == "escalate":
            return f"already escalated by {case.escalated_by}"
        if who.role != "lead":
            return "it is escalated: a lead decides"
    return None
