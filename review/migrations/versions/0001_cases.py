"""Cases, their audit trail, the labels' outbox and logins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make this layout of the one before."""
    op.create_table(
        "cases",
        sa.Column("transaction_id", sa.String(length=128), nullable=False),
        sa.Column("customer_id", sa.String(length=128), nullable=False),
        sa.Column("terminal_id", sa.String(length=128), nullable=False),
        sa.Column("event_time_ms", sa.BigInteger(), nullable=False),
        sa.Column("amount", sa.Float(precision=53), nullable=False),
        sa.Column("currency", sa.String(length=64), nullable=True),
        sa.Column("merchant_category", sa.String(length=64), nullable=True),
        sa.Column("channel", sa.String(length=64), nullable=True),
        sa.Column("country", sa.String(length=64), nullable=True),
        sa.Column("decision", sa.String(length=64), nullable=False),
        sa.Column("decision_source", sa.String(length=64), nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=True),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.Column("model_version", sa.String(length=64), nullable=False),
        sa.Column("policy_version", sa.String(length=64), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("reason_codes", sa.JSON(), nullable=False),
        sa.Column("expected_loss", sa.Float(precision=53), nullable=False),
        sa.Column("flagged_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("stored_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("claimed_by", sa.String(length=64), nullable=True),
        sa.Column("claimed_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("escalated_by", sa.String(length=64), nullable=True),
        sa.Column("first_seen_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.String(length=64), nullable=True),
        sa.Column("decided_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("transaction_id"),
    )
    op.create_index("ix_cases_customer", "cases", ["customer_id", "event_time_ms"])
    op.create_index("ix_cases_decided", "cases", ["decided_at_ms"])
    op.create_index("ix_cases_flagged", "cases", ["flagged_at_ms"])
    op.create_index("ix_cases_queue", "cases", ["state", "expected_loss"])
    op.create_index("ix_cases_terminal", "cases", ["terminal_id", "event_time_ms"])

    op.create_table(
        "labels_outbox",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("transaction_id", sa.String(length=128), nullable=False),
        sa.Column("is_fraud", sa.Boolean(), nullable=False),
        sa.Column("labelled_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("terminal_id", sa.String(length=128), nullable=False),
        sa.Column("event_time_ms", sa.BigInteger(), nullable=False),
        sa.Column("sent_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_labels_waiting", "labels_outbox", ["sent_at_ms", "id"])

    op.create_table(
        "logins",
        sa.Column("token_sha256", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("token_sha256"),
    )
    op.create_table(
        "case_events",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("transaction_id", sa.String(length=128), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.String(length=64), nullable=False),
        sa.Column("action", sa.String(length=16), nullable=False),
        sa.Column("from_state", sa.String(length=16), nullable=False),
        sa.Column("to_state", sa.String(length=16), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["transaction_id"], ["cases.transaction_id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_case_events_transaction_id", "case_events", ["transaction_id"])


def downgrade() -> None:
    """Make the one before again: an empty database."""
    for table in ("case_events", "logins", "labels_outbox", "cases"):
        op.drop_table(table)
