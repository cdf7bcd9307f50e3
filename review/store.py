"""Flags into cases, and labels out of them: what the desk's consumer does with the database."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from flagger.alert import Alert
from review.database import mapped_errors, transaction
from review.risk import expected_loss
from review.tables import Case, Label, State

__all__ = ["CaseStore", "Flag", "Stored"]

logger = logging.getLogger(__name__)

MAX_ROWS = 500
"""Most cases in one statement: 28 columns each stay below SQLite's 32,766 values."""

_UNHOLDABLE = (DataError, IntegrityError, ValueError, OverflowError)
"""A value that does not fit its column; SQLite's driver says so in Python's own errors."""


@dataclass(frozen=True, slots=True)
class Flag:
    """An alert as it arrived.

    Attributes:
        alert: The message.
        flagged_at_ms: When its decision was made, epoch milliseconds.
    """

    alert: Alert
    flagged_at_ms: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of flags: new cases, repeats of known ones, and those the database refuses."""

    new: int = 0
    repeats: int = 0
    refused: int = 0


class CaseStore:
    """Cases and the labels' outbox in one database.

    Args:
        engine: From `review.database.open_engine`, with this release's layout.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def add(self, flags: Sequence[Flag], now_ms: int) -> Stored:
        """Store flags as new cases, on disk when this returns; known ids stay as they are.

        Args:
            flags: At most MAX_ROWS.
            now_ms: The current time.

        Raises:
            CaseStoreError: Nothing is stored; the same flags may be tried again.
        """
        if not flags:
            return Stored()
        rows = [_row(flag, now_ms) for flag in flags]
        with mapped_errors(self.engine):
            try:
                new = self._insert(rows)
            except _UNHOLDABLE:
                return self._insert_one_by_one(rows)
        return Stored(new, len(rows) - new)

    def _insert(self, rows: list[dict[str, Any]]) -> int:
        dialect = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(Case.__table__).on_conflict_do_nothing()
        with self.engine.begin() as connection:
            return len(connection.execute(statement.returning(Case.transaction_id), rows).all())

    def _insert_one_by_one(self, rows: list[dict[str, Any]]) -> Stored:
        """Find the row that the database cannot hold, and store the others."""
        new = refused = 0
        for row in rows:
            try:
                new += self._insert([row])
            except _UNHOLDABLE as error:
                refused += 1
                logger.error(
                    "The case store cannot hold a flag of %d; it is on the alerts topic only: %s",
                    row["event_time_ms"],
                    type(error).__name__,
                )
        return Stored(new, len(rows) - new - refused, refused)

    def waiting_labels(self, limit: int) -> list[Label]:
        """Return the labels that are not sent yet, in the order of their making."""
        with transaction(self.engine) as session:
            waiting = select(Label).where(Label.sent_at_ms.is_(None)).order_by(Label.id)
            return list(session.scalars(waiting.limit(limit)))

    def mark_sent(self, ids: Sequence[int], now_ms: int) -> None:
        """Take note that the broker has these labels."""
        with transaction(self.engine) as session:
            session.execute(update(Label).where(Label.id.in_(ids)).values(sent_at_ms=now_ms))

    def count_waiting_labels(self) -> int:
        """Return how many labels are not sent yet."""
        with transaction(self.engine) as session:
            waiting = select(func.count()).select_from(Label).where(Label.sent_at_ms.is_(None))
            return session.scalar(waiting) or 0

    def count_states(self) -> dict[str, int]:
        """Return the number of cases in each state that has any."""
        with transaction(self.engine) as session:
            found = session.execute(select(Case.state, func.count()).group_by(Case.state))
            return {state: count for state, count in found}

    def oldest_new_ms(self) -> int | None:
        """Return when the oldest case that nobody has taken was flagged; None: there is none."""
        with transaction(self.engine) as session:
            return session.scalar(
                select(func.min(Case.flagged_at_ms)).where(Case.state == State.NEW)
            )


def _row(flag: Flag, now_ms: int) -> dict[str, Any]:
    alert = flag.alert
    return {
        "transaction_id": alert.transaction_id,
        "customer_id": alert.customer_id,
        "terminal_id": alert.terminal_id,
        "event_time_ms": alert.event_time,
        "amount": alert.amount,
        "currency": alert.currency or None,
        "merchant_category": alert.merchant_category or None,
        "channel": alert.channel or None,
        "country": alert.country or None,
        "decision": alert.decision,
        "decision_source": alert.decision_source,
        "score": alert.score,
        "model": alert.model,
        "model_version": alert.model_version,
        "policy_version": alert.policy_version,
        "reasons": alert.reasons,
        "reason_codes": alert.reason_codes,
        "expected_loss": expected_loss(alert),
        "flagged_at_ms": flag.flagged_at_ms,
        "stored_at_ms": now_ms,
        "state": State.NEW.value,
        "version": 1,
    }
