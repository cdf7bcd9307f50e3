"""The feature engine: one code path for a single request, a Kafka batch and a training replay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.features.batch import LabelBatch, TransactionBatch
from flagger.features.catalogue import CATALOGUE
from flagger.features.contract import FeatureContract
from flagger.features.program import compile_program
from flagger.features.rows import apply_labels, score_rows
from flagger.state.records import CUSTOMER, TERMINAL
from flagger.state.table import EntityTable

__all__ = ["FeatureEngine", "FeatureRows", "LogPositions"]


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
class FeatureRows:
    """Model input of one batch.

    Attributes:
        rows: float32 [n, F], C-contiguous, columns in the order of the catalogue.
        flags: uint8 [n], see `flagger.features.rows`; a row with DUPLICATE or ALREADY_APPLIED
            gets no decision and holds NaN.
    """

    rows: npt.NDArray[np.float32]
    flags: npt.NDArray[np.uint8]


class FeatureEngine:
    """Entity state and the kernels that read and move it. Not thread-safe: one owner.

    Attributes:
        customers: Customer records.
        terminals: Terminal records.
        late_labels: Labels so far that came after their bucket had left the terminal's ring.
    """

    def __init__(self, contract: FeatureContract) -> None:
        self.contract = contract
        self.customers = EntityTable(CUSTOMER)
        self.terminals = EntityTable(TERMINAL)
        self.late_labels = 0
        self._program = compile_program(contract)

    def process(
        self, batch: TransactionBatch, positions: LogPositions | None = None
    ) -> FeatureRows:
        """Compute the rows of a batch and count its transactions, in the batch's order.

        Each row describes the state just before its transaction. Records that the tables lack
        start empty: load them from the store first where there is one.
        """
        n = len(batch)
        positions = positions or LogPositions.none(n)
        rows = np.empty((n, len(CATALOGUE)), dtype=np.float32)
        flags = np.empty(n, dtype=np.uint8)
        program = self._program
        customer_rows = self.customers.rows_of(batch.customer_key)
        terminal_rows = self.terminals.rows_of(batch.terminal_key)
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
            (self.customers.records, self.customers.dirty, customer_rows),
            (self.terminals.records, self.terminals.dirty, terminal_rows),
            (positions.partition, positions.offset),
            rows,
            flags,
        )
        return FeatureRows(rows, flags)

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
        self.late_labels += apply_labels(
            self.terminals.records,
            self.terminals.dirty,
            rows,
            labels.transaction_key,
            labels.event_time_ms,
            labels.is_fraud,
            offsets,
        )
