"""Entity state in memory and its way to the store: never ahead of the committed offsets.

A snapshot copies what changed and notes how far it had been processed. It is written once those
offsets are committed; its marks follow after its records. After a restart the log is read again
from the marks. Records that were written without their mark skip what they already include.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.features import FeatureContract, FeatureEngine
from flagger.settings import Settings
from flagger.state.records import CUSTOMER
from flagger.state.store import StateStore
from flagger.state.table import EntityTable
from streamer.metrics import StreamerMetrics
from streamer.source import Assignment

__all__ = ["HotState"]

_TERMINAL_WRITER_PARTITION = 0
"""All streamers hold all terminals alike; the one that owns this partition writes them."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    customers: npt.NDArray[Any]
    terminals: npt.NDArray[Any]
    positions: dict[int, int]
    side_positions: dict[str, int]


class HotState:
    """The feature engine with the store behind it.

    Attributes:
        engine: The engine; its tables hold what this streamer has seen.
        written: Records written to the store so far.
        loaded: Records found in the store so far.
    """

    def __init__(self, contract: FeatureContract, store: StateStore, settings: Settings) -> None:
        self.engine = FeatureEngine(contract)
        self.written = 0
        self.loaded = 0
        self._store = store
        self._marks = settings.consumer_group
        self._snapshot: _Snapshot | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._write: Future[None] | None = None
        self._writes_terminals = False
        terminals = store.read_all("terminal")
        self.engine.terminals.load(terminals)
        self.loaded += len(terminals)

    def side_positions(self) -> dict[str, int]:
        """Return topic -> offset up to which the stored terminals include the side logs."""
        return self._store.read_marks(f"{self._marks}:side-logs")

    def plan(self, committed: dict[int, int]) -> dict[int, Assignment]:
        """Return where to read each partition from, given the committed offsets.

        Raises:
            ConfigurationError: The store holds the state of another log.
        """
        marks = self._store.read_marks(self._marks)
        for p, offset in committed.items():
            if marks.get(str(p), 0) > offset:
                raise ConfigurationError(
                    f"The state store includes partition {p} up to offset {marks[str(p)]}, but "
                    f"only {offset} is committed in Kafka: it holds the state of another log. Use "
                    f"an empty Valkey database, or the group that wrote it "
                    f"(FLAGGER_CONSUMER_GROUP)."
                )
        self._writes_terminals = _TERMINAL_WRITER_PARTITION in committed
        if self._writes_terminals:
            # Some may have changed while others wrote them, or nobody did: the marks that follow
            # would claim that they are stored.
            self.engine.terminals.mark_all_dirty()
        return {p: Assignment(marks.get(str(p), 0), offset) for p, offset in committed.items()}

    def load(self, customer_keys: npt.NDArray[np.uint64]) -> None:
        """Fetch the customers that are not in memory."""
        missing = self.engine.customers.missing(customer_keys)
        if len(missing):
            found = self._store.read("customer", missing)
            self.engine.customers.load(found)
            self.loaded += len(found)

    def snapshot(self, positions: dict[int, int], side_positions: dict[str, int]) -> None:
        """Copy what changed, unless an earlier snapshot is still on its way.

        Args:
            positions: Partition -> offset up to which the log has been processed.
            side_positions: The same for the side logs.
        """
        if self._snapshot is None:
            self._snapshot = _Snapshot(
                self.engine.customers.take_dirty(),
                self.engine.terminals.take_dirty(),
                dict(positions),
                dict(side_positions),
            )

    def write_if_committed(self, committed: dict[int, int]) -> None:
        """Start to write the snapshot once all it includes is committed.

        Raises:
            StateStoreError: An earlier write failed; the snapshot is kept and tried again.
        """
        if self._write is not None:
            if not self._write.done():
                return
            write, self._write = self._write, None
            write.result()
            self._snapshot = None
        snapshot = self._snapshot
        if snapshot is not None and all(
            committed.get(p, 0) >= offset for p, offset in snapshot.positions.items()
        ):
            self._write = self._writer.submit(self._write_out, snapshot)

    def flush(self, committed: dict[int, int], side_positions: dict[str, int]) -> None:
        """Write everything that changed, now; all of it must be committed."""
        for _ in range(2):  # the snapshot under way, then what has changed since
            self.snapshot(committed, side_positions)
            self.write_if_committed(committed)
            if self._write is not None:
                self._write.result()
            self.write_if_committed(committed)

    def forget_customers(self) -> None:
        """Drop the customers: their partitions belong to somebody else now."""
        if self._write is not None:
            self._write.exception()  # waits; a failed write is repeated by nobody: it is replayed
            self._write = None
        self._snapshot = None
        self.engine.customers = EntityTable(CUSTOMER)

    def report(self, metrics: StreamerMetrics) -> None:
        """Set the gauges that speak of the state."""
        metrics.customers.set(len(self.engine.customers))
        metrics.terminals.set(len(self.engine.terminals))
        metrics.records_written.set(self.written)
        metrics.records_loaded.set(self.loaded)
        metrics.too_late.set(self.engine.too_late)

    def close(self) -> None:
        """End the writer thread."""
        self._writer.shutdown(wait=True)
        self._store.close()

    def _write_out(self, snapshot: _Snapshot) -> None:
        self._store.write("customer", snapshot.customers)
        self.written += len(snapshot.customers)
        if self._writes_terminals:
            self._store.write("terminal", snapshot.terminals)
            self.written += len(snapshot.terminals)
            self._store.write_marks(f"{self._marks}:side-logs", snapshot.side_positions)
        self._store.write_marks(
            self._marks, {str(p): offset for p, offset in snapshot.positions.items()}
        )
