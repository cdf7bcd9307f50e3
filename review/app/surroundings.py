"""What else a case's customer and terminal did: their flags, and the payments that were not."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from flagger.errors import StateStoreError
from review.app.context import Desk
from review.history import Entity, Payment
from review.tables import Case

__all__ = ["Surroundings", "around"]

logger = logging.getLogger(__name__)

ROWS = 12
"""Rows of a table beside a case."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The others of a customer or terminal.

    Attributes:
        flags: Cases, by their payment's time, the newest first; see `CaseQueries.history`.
        others: Payments that are no cases, the newest first.
        note: What the analyst must know of their completeness.
    """

    flags: list[Case]
    others: list[Payment]
    note: str

    def newest(self) -> list[Case | Payment]:
        """Return the newest of both kinds, as many as a table shows."""
        both: list[Case | Payment] = [*self.flags, *self.others]
        return sorted(both, key=lambda one: -one.event_time_ms)[:ROWS]


def around(desk: Desk, case: Case, of: Entity) -> Surroundings:
    """Return what else is known of a case's customer or terminal."""
    flags = desk.queries.history(case, of)
    if desk.history is None:
        return Surroundings(flags, [], "Flags only: payments that were approved are not kept here.")
    try:
        kept = desk.history.newest(of, case.customer_id if of == "customer" else case.terminal_id)
    except StateStoreError as error:
        logger.error("%s", error)
        return Surroundings(
            flags, [], "Flags only: Valkey, which has the approved payments, does not answer."
        )
    known = {flag.transaction_id for flag in flags} | {case.transaction_id}
    ids = [payment.transaction_id for payment in kept if payment.transaction_id not in known]
    known |= {other.transaction_id for other in desk.queries.find_all(ids)}
    settings = desk.settings
    return Surroundings(
        flags,
        [payment for payment in kept if payment.transaction_id not in known],
        f"Flags, and the {settings.desk_history_payments} newest payments of this {of} within "
        f"{settings.desk_history_days} days.",
    )
