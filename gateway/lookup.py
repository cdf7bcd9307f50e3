"""Where `GET /v1/decisions` finds decisions: in Valkey for a day, in an archive for longer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from flagger.decision_table import DecisionTable
from flagger.errors import DecisionStoreError
from flagger.features.hashing import key_of
from gateway.answers import Answer
from gateway.state import AsyncStateStore

__all__ = ["ArchivedDecisions", "DecisionLookup", "Found", "RecentDecisions"]


@dataclass(frozen=True, slots=True)
class Found:
    """A decision that was looked up.

    Attributes:
        answer: As its caller got it.
        recorded: True if the log holds it; before that, nobody but this gateway knows it.
    """

    answer: Answer
    recorded: bool


class DecisionLookup(Protocol):
    """Finds decisions by transaction id."""

    async def find(self, transaction_id: str, timeout_ms: float) -> Found | None:
        """Return the decision about a transaction; None: there is none here.

        Raises:
            StateStoreError: No answer in time, or one that cannot be read.
        """

    async def close(self) -> None:
        """Close the connections."""


class RecentDecisions:
    """What the gateways decided within `DECISION_TTL_S`, from Valkey."""

    def __init__(self, state: AsyncStateStore) -> None:
        self._state = state

    async def find(self, transaction_id: str, timeout_ms: float) -> Found | None:
        """See `DecisionLookup`."""
        key = np.array([key_of(transaction_id)], dtype=np.uint64)
        stored = await self._state.read_claim(key, timeout_ms)
        if stored is None:
            return None
        return Found(Answer.of(stored.claim, transaction_id), stored.written)

    async def close(self) -> None:
        """Do nothing: the connection belongs to the state."""


class ArchivedDecisions:
    """What anybody decided and the archive holds, from DynamoDB; it knows the log only."""

    def __init__(self, table: DecisionTable) -> None:
        self._table = table

    async def find(self, transaction_id: str, timeout_ms: float) -> Found | None:
        """See `DecisionLookup`."""
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                decision = await asyncio.to_thread(self._table.find, transaction_id)
        except TimeoutError as error:
            raise DecisionStoreError(
                f"The table of archived decisions did not answer within {timeout_ms:.0f} ms."
            ) from error
        if decision is None:
            return None
        return Found(Answer.of(decision, transaction_id), True)

    async def close(self) -> None:
        """Close the connections."""
        self._table.close()
