"""What the case store holds: cases, what happened to them, labels on their way, logins.

Times are whole milliseconds since 1970, UTC, as on the wire: they compare alike on SQLite and
PostgreSQL, which differ in what a time with a zone is.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flagger.wire.limits import MAX_CATEGORY_BYTES, MAX_ID_BYTES

__all__ = ["OPEN_STATES", "Base", "Case", "Event", "Label", "Login", "State"]

_ID = String(MAX_ID_BYTES)
_CATEGORY = String(MAX_CATEGORY_BYTES)
_WORD = String(64)


class State(StrEnum):
    """Where a case is in its life."""

    NEW = "new"
    CLAIMED = "claimed"
    ESCALATED = "escalated"
    CONFIRMED_FRAUD = "confirmed_fraud"
    DISMISSED = "dismissed"


OPEN_STATES = (State.NEW, State.CLAIMED, State.ESCALATED)
"""States in which somebody still has to decide."""


class Base(DeclarativeBase):
    """The tables' common base."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON, int: BigInteger}  # noqa: RUF012 - SQLAlchemy reads it


class Case(Base):
    """One flagged transaction.

    Attributes:
        transaction_id: The transaction's id; a second alert of the same id changes nothing.
        expected_loss: Score x amount: the order of the queue; see `review.risk`.
        flagged_at_ms: When the decision was made.
        stored_at_ms: When the desk took it in.
        state: See `State`.
        version: Rises with each change: two writers of the same version cannot both succeed.
        claimed_by: Who works on it, and until when it stays theirs.
        escalated_by: Who passed it on; from then on only leads decide it.
        first_seen_at_ms: When an analyst first opened or took it.
        decided_at_ms: When, and by whom, it was confirmed or dismissed.

    The others are the alert's own words; see `flagger.alert.Alert`.
    """

    __tablename__ = "cases"

    transaction_id: Mapped[str] = mapped_column(_ID, primary_key=True)
    customer_id: Mapped[str] = mapped_column(_ID)
    terminal_id: Mapped[str] = mapped_column(_ID)
    event_time_ms: Mapped[int]
    amount: Mapped[float] = mapped_column(Float(53))
    currency: Mapped[str | None] = mapped_column(_CATEGORY)
    merchant_category: Mapped[str | None] = mapped_column(_CATEGORY)
    channel: Mapped[str | None] = mapped_column(_CATEGORY)
    country: Mapped[str | None] = mapped_column(_CATEGORY)
    decision: Mapped[str] = mapped_column(_WORD)
    decision_source: Mapped[str] = mapped_column(_WORD)
    score: Mapped[float | None] = mapped_column(Float(53))
    model: Mapped[str] = mapped_column(_WORD)
    model_version: Mapped[str] = mapped_column(_WORD)
    policy_version: Mapped[str] = mapped_column(_WORD)
    reasons: Mapped[list[str]]
    reason_codes: Mapped[list[str]]
    expected_loss: Mapped[float] = mapped_column(Float(53))
    flagged_at_ms: Mapped[int]
    stored_at_ms: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), default=State.NEW)
    version: Mapped[int] = mapped_column(Integer)
    claimed_by: Mapped[str | None] = mapped_column(_WORD)
    claimed_until_ms: Mapped[int | None]
    escalated_by: Mapped[str | None] = mapped_column(_WORD)
    first_seen_at_ms: Mapped[int | None]
    decided_by: Mapped[str | None] = mapped_column(_WORD)
    decided_at_ms: Mapped[int | None]

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - SQLAlchemy reads it
    __table_args__ = (
        Index("ix_cases_queue", "state", "expected_loss"),
        Index("ix_cases_customer", "customer_id", "event_time_ms"),
        Index("ix_cases_terminal", "terminal_id", "event_time_ms"),
        Index("ix_cases_flagged", "flagged_at_ms"),
        Index("ix_cases_decided", "decided_at_ms"),
    )


class Event(Base):
    """The audit trail, and the notes: who did what to a case, when. Only ever added to."""

    __tablename__ = "case_events"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    transaction_id: Mapped[str] = mapped_column(
        _ID, ForeignKey("cases.transaction_id", ondelete="CASCADE"), index=True
    )
    at_ms: Mapped[int]
    who: Mapped[str] = mapped_column(_WORD)
    action: Mapped[str] = mapped_column(String(16))
    from_state: Mapped[str] = mapped_column(String(16))
    to_state: Mapped[str] = mapped_column(String(16))
    note: Mapped[str] = mapped_column(Text, default="")


class Label(Base):
    """The outbox: outcomes that were written with their case and still go to Kafka, in this order.

    Attributes:
        sent_at_ms: When the broker acknowledged it; None: it waits.
    """

    __tablename__ = "labels_outbox"

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    transaction_id: Mapped[str] = mapped_column(_ID)
    is_fraud: Mapped[bool] = mapped_column(Boolean)
    labelled_at_ms: Mapped[int]
    terminal_id: Mapped[str] = mapped_column(_ID)
    event_time_ms: Mapped[int]
    sent_at_ms: Mapped[int | None]

    __table_args__ = (Index("ix_labels_waiting", "sent_at_ms", "id"),)


class Login(Base):
    """A session of the desk's pages; the browser holds the token, this is its SHA-256."""

    __tablename__ = "logins"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(_WORD)
    expires_at_ms: Mapped[int]
