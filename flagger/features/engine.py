"""The feature engine: one code path for a single request, a Kafka batch and a training replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.features.batch import LabelBatch, TransactionBatch
from flagger.features.catalogue import CATALOGUE
from flagger.features.contract import FeatureContract
from flagger.features.program import compile_program
from flagger.features.rows import score_rows
from flagger.features.updates import apply_activity, apply_labels, hash_rows
from flagger.state.records import CUSTOMER, TERMINAL
from flagger.state.table import (
    BLANK_CUSTOMER,
    BLANK_TERMINAL,
    EntityTable,
    RowView,
    copied_view,
)

__all__ = ["ActivityBatch", "FeatureEngine", "FeatureRows", "LogPositions"]


@dataclass(frozen=True, slots=True)
class LogPositions:
    """Where a batch's transactions stand in the transactions topic.

    Attributes:
        partition: int16 [n]; -1 for transactions that are not from a log.
        offset: int64 [n].
    """

    partition: npt.NDArray[np.int16]
    offset: npt.NDArray[np.int64]

    @classmethod
    def none(cls, n: int) -> LogPositions:
        """Return positions for n transactions that are not from a log."""
        return cls(np.full(n, -1, dtype=np.int16), np.full(n, -1, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class ActivityBatch:
    """How many transactions terminals had per half-day bucket: one entry of the activity log.

    Attributes:
        terminal_key: uint64 [n].
        bucket: floor(event_time_ms / TERMINAL_BUCKET_MS), int32 [n].
        count: uint32 [n].
    """

    terminal_key: npt.NDArray[np.uint64]
    bucket: npt.NDArray[np.int32]
    count: npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Model input of one batch.

    Attributes:
        rows: float32 [n, F], C-contiguous, columns in the order of the catalogue.
        flags: uint8 [n], see `flagger.features.rows`; a row with DUPLICATE or ALREADY_APPLIED
            gets no decision and holds NaN.
    """

    rows: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return XXH64 of each row's bytes, uint64 [n]: equal rows, equal hashes."""
        return hash_rows(self.rows.view(np.uint8))


class FeatureEngine:
    """Entity state and the kernels that read and move it. Not thread-safe: one owner.

    Attributes:
        customers: Customer records.
        terminals: Terminal records.
        too_late: Labels and terminal counts so far that came after their bucket had left the ring.
    """

    def __init__(self, contract: FeatureContract) -> None:
        self.contract = contract
        self.customers = EntityTable(CUSTOMER)
        self.terminals = EntityTable(TERMINAL)
        self.too_late = 0
        self._program = compile_program(contract)

    def use_contract(self, contract: FeatureContract) -> None:
        """Go on with another model's vocabularies and label delay; the state stays as it is."""
        self.contract = contract
        self._program = compile_program(contract)

    def process(
        self,
        batch: TransactionBatch,
        positions: LogPositions | None = None,
        *,
        count_at_terminals: bool = True,
    ) -> FeatureRows:
        """Compute the rows of a batch and count its transactions, in the batch's order.

        Each row describes the state just before its transaction. Records that the tables lack
        start empty: load them from the store first where there is one.

        Args:
            batch: The transactions.
            positions: Where they stand in the log; None: not from a log.
            count_at_terminals: False where the terminals' counts come from the activity log
                (`apply_activity`), which several streamers share.
        """
        return self._run(
            batch,
            positions or LogPositions.none(len(batch)),
            self.customers.view(batch.customer_key),
            self.terminals.view(batch.terminal_key),
            count_at_terminals=count_at_terminals,
        )

    def process_detached(
        self,
        batch: TransactionBatch,
        customers: npt.NDArray[Any],
        terminals: npt.NDArray[Any],
    ) -> FeatureRows:
        """Compute the rows of a batch on copies of the given records; nothing here is moved.

        Args:
            batch: The transactions.
            customers: The CUSTOMER records that exist among the batch's customers.
            terminals: The TERMINAL records that exist among the batch's terminals.
        """
        return self._run(
            batch,
            LogPositions.none(len(batch)),
            copied_view(BLANK_CUSTOMER, customers, batch.customer_key),
            copied_view(BLANK_TERMINAL, terminals, batch.terminal_key),
            count_at_terminals=False,
        )

    def _run(
        self,
        batch: TransactionBatch,
        positions: LogPositions,
        customers: RowView,
        terminals: RowView,
        *,
        count_at_terminals: bool,
    ) -> FeatureRows:
        n = len(batch)
        rows = np.empty((n, len(CATALOGUE)), dtype=np.float32)
        flags = np.empty(n, dtype=np.uint8)
        program = self._program
        score_rows(
            program.ops,
            program.arguments,
            (program.vocabulary_keys, program.vocabulary_codes, program.vocabulary_starts),
            program.label_delay_ms,
            (
                batch.transaction_key,
                batch.customer_key,
                batch.terminal_key,
                batch.event_time_ms,
                batch.amount,
                batch.category_keys,
            ),
            customers,
            terminals,
            (positions.partition, positions.offset),
            count_at_terminals,
            rows,
            flags,
        )
        return FeatureRows(rows, flags)

    def apply_activity(self, activity: ActivityBatch, offset: int) -> None:
        """Count transactions at terminals; records that include `offset` already are left alone."""
        rows = self.terminals.rows_of(activity.terminal_key)
        self.too_late += apply_activity(
            self.terminals.records,
            self.terminals.dirty,
            rows,
            activity.bucket,
            activity.count,
            offset,
        )

    def apply_labels(
        self, labels: LabelBatch, offsets: npt.NDArray[np.int64] | None = None
    ) -> None:
        """Count confirmed frauds at their terminals; repeated labels change nothing.

        Args:
            labels: The labels in log order.
            offsets: Their offsets in the labels topic, int64 [n]; None: not from a log.
        """
        if offsets is None:
            offsets = np.full(len(labels), -1, dtype=np.int64)
        rows = self.terminals.rows_of(labels.terminal_key)
        self.too_late += apply_labels(
            self.terminals.records,
            self.terminals.dirty,
            rows,
            labels.transaction_key,
            labels.event_time_ms,
            labels.is_fraud,
            offsets,
        )
