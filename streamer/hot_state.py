"""Entity state in memory and its way to the store: never ahead of the committed offsets.

About every second a round of writing begins: it notes which records have changed and how far the
log had been processed. Copies are taken in pieces, each written once everything that it includes is
committed. After the last piece the marks follow: up to there the store is complete, and there a
restart begins to read the log again. Records that are newer than the marks skip what they include.

Nor does anything stored ever go back: whoever takes the terminals over may be behind their earlier
writer in the side logs. It writes none before it has caught up; records that went back under marks
that are ahead would lack what is between, for good.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.features import FeatureContract, FeatureEngine
from flagger.settings import Settings
from flagger.state.records import CUSTOMER
from flagger.state.store import Claim, StateStore
from flagger.state.table import EntityTable
from streamer.metrics import StreamerMetrics
from streamer.source import Assignment

__all__ = ["HotState"]

_TERMINAL_WRITER_PARTITION = 0
"""All streamers hold all terminals alike; the one that owns this partition writes them."""

RECORDS_PER_PIECE = 32_768
"""About 32 MiB in memory. At this many changed customers a round does not wait for its interval."""
_EVICTED_PART = 16
"""When room is needed, this part of the customers makes room at once: it costs a new index."""


@dataclass(slots=True)
class _Round:
    """What one round of writing has left to do.

    Attributes:
        customers: Rows of changed customers that are not copied yet, intp [n].
        terminals: The same for terminals; none if they are not ours to write.
        positions: Partition -> offset up to which the store is complete at the end of the round.
        side_marks: The same for the side logs, with their clock; none without terminals.
    """

    customers: npt.NDArray[np.intp]
    terminals: npt.NDArray[np.intp]
    positions: dict[int, int]
    side_marks: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Copies of records; written once all they include is committed.

    Attributes:
        customers: CUSTOMER records.
        terminals: TERMINAL records.
        positions: Partition -> offset up to which they may include the log.
        ends: The round that ends with this piece: its marks follow. None: more pieces follow.
    """

    customers: npt.NDArray[Any]
    terminals: npt.NDArray[Any]
    positions: dict[int, int]
    ends: _Round | None


class HotState:
    """The feature engine with the store behind it.

    At most `settings.max_customers_in_memory` customers are kept. Beyond that the least recently
    used ones make room; they are in the store and come back when they are needed.

    Attributes:
        engine: The engine; its tables hold what this streamer has seen.
        written: Records written to the store so far.
        loaded: Records found in the store so far.
        created: Customers so far that were neither in memory nor in the store.
        evicted: Customers so far that made room for others.
        writes_terminals: True while the terminals' records are ours to write, once they include
            all that the stored ones do.
        side_marks: What the store had at the start or the last `plan`: topic -> offset up to which
            its terminals include the side logs, and the side logs' clock.
    """

    def __init__(self, contract: FeatureContract, store: StateStore, settings: Settings) -> None:
        self.engine = FeatureEngine(contract)
        self.written = self.loaded = self.created = self.evicted = 0
        self._max_customers = settings.max_customers_in_memory
        self.engine.customers = self._no_customers()
        self._store = store
        self._marks = settings.consumer_group
        self._side_marks_name = f"{settings.consumer_group}:side-logs"
        self._round: _Round | None = None
        self._piece: _Piece | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._write: Future[None] | None = None
        self.writes_terminals = False
        self._claim: Claim | None = None
        self.side_marks, terminals = store.read_marked("terminal", self._side_marks_name)
        self.engine.terminals.load(terminals)
        self.loaded += len(terminals)

    def plan(self, committed: dict[int, int]) -> dict[int, Assignment]:
        """Return where to read each partition from, given the committed offsets.

        Raises:
            ConfigurationError: The store holds the state of another log.
        """
        # First of all: an earlier owner that was only paused writes nothing any more.
        self._claim = self._store.claim(self._marks, committed)
        marks = self._store.read_marks(self._marks)
        for p, offset in committed.items():
            if marks.get(str(p), 0) > offset:
                raise ConfigurationError(
                    f"The state store includes partition {p} up to offset {marks[str(p)]}, but "
                    f"only {offset} is committed in Kafka: it holds the state of another log, or "
                    f"the group's offsets have expired. Use an empty Valkey database, the group "
                    f"that wrote it (FLAGGER_CONSUMER_GROUP), or commit its offset again."
                )
        self.side_marks = self._store.read_marks(self._side_marks_name)
        self.writes_terminals = _TERMINAL_WRITER_PARTITION in committed
        if self.writes_terminals:
            # Some may have changed while others wrote them, or nobody did: the marks that follow
            # would claim that they are stored.
            self.engine.terminals.mark_all_dirty()
        return {p: Assignment(marks.get(str(p), 0), offset) for p, offset in committed.items()}

    def load(
        self, customer_keys: npt.NDArray[np.uint64], store_all: Callable[[], None] = lambda: None
    ) -> None:
        """Fetch the customers that are not in memory.

        Args:
            customer_keys: uint64 [n].
            store_all: Called where room is needed and too few customers are in the store as they
                are in memory; must `flush`.
        """
        missing = self.engine.customers.missing(customer_keys)
        if not len(missing):
            return
        self._make_room(customer_keys, len(missing), store_all)
        missing = self.engine.customers.missing(customer_keys)
        found = self._store.read("customer", missing, self._claim)
        self.engine.customers.load(found)
        self.loaded += len(found)
        self.created += len(missing) - len(found)

    def _make_room(
        self, wanted: npt.NDArray[np.uint64], n_missing: int, store_all: Callable[[], None]
    ) -> None:
        customers = self.engine.customers
        if len(customers) + n_missing <= self._max_customers:
            return
        customers.touch(wanted)  # the batch's own customers go last
        n = n_missing + self._max_customers // _EVICTED_PART
        evicted = self._evict(n)
        if evicted < n_missing:
            store_all()
            self._evict(n - evicted)

    def _evict(self, n: int) -> int:
        if not self._idle:
            return 0  # what looks clean may not be in the store yet
        evicted = self.engine.customers.evict(n)
        self.evicted += evicted
        return evicted

    @property
    def has_much_to_write(self) -> bool:
        """True if the next round of writing should not wait for the interval."""
        return self._idle and self.engine.customers.count_dirty() > RECORDS_PER_PIECE

    @property
    def _idle(self) -> bool:
        return self._round is None and self._piece is None

    def begin_round(self, positions: dict[int, int], side_marks: dict[str, int]) -> None:
        """Begin to write what has changed, unless an earlier round is still under way.

        Args:
            positions: Partition -> offset up to which the log has been processed.
            side_marks: The same for the side logs, with their clock.
        """
        if not self._idle:
            return
        customers, terminals = self.engine.customers, self.engine.terminals
        caught_up = all(mark >= self.side_marks.get(n, 0) for n, mark in side_marks.items())
        if self.writes_terminals and caught_up:
            rows, marks = terminals.dirty_rows(), dict(side_marks)
        else:
            rows, marks = np.empty(0, dtype=np.intp), {}
        self._round = _Round(customers.dirty_rows(), rows, dict(positions), marks)

    def advance(self, positions: dict[int, int], committed: dict[int, int]) -> bool:
        """Go on with the round: copy the next piece, and write it once it is committed.

        Args:
            positions: Partition -> offset up to which the log has been processed.
            committed: Partition -> offset up to which it is committed.

        Returns True when a write has just been finished.

        Raises:
            StateStoreError: A write failed; the piece is kept and tried again.
            StateLostError: The partitions have another owner, or the store lost data.
        """
        finished = False
        if self._write is not None:
            if not self._write.done():
                return False
            write, self._write = self._write, None
            write.result()
            self._piece = None
            finished = True
        if self._piece is None:
            self._piece = self._next_piece(positions)
        piece = self._piece
        if piece is not None and all(
            committed.get(p, 0) >= offset for p, offset in piece.positions.items()
        ):
            self._write = self._writer.submit(self._write_out, piece)
        return finished

    def _next_piece(self, positions: dict[int, int]) -> _Piece | None:
        now = self._round
        if now is None:
            return None
        customers = now.customers[:RECORDS_PER_PIECE]
        terminals = now.terminals[: RECORDS_PER_PIECE - len(customers)]
        now.customers = now.customers[len(customers) :]
        now.terminals = now.terminals[len(terminals) :]
        ends = not len(now.customers) and not len(now.terminals)
        if ends:
            self._round = None
        return _Piece(
            self.engine.customers.take(customers),
            self.engine.terminals.take(terminals),
            dict(positions),
            now if ends else None,
        )

    def flush(self, positions: dict[int, int], side_marks: dict[str, int]) -> None:
        """Write everything that changed, now; all that was processed must be committed.

        Args:
            positions: Partition -> offset up to which the log has been processed; less than what
                is committed while state is rebuilt.
            side_marks: Topic -> offset up to which the side logs are applied, and their clock.
        """
        for _ in range(2):  # the round under way, then what has changed since
            self.begin_round(positions, side_marks)
            while not self._idle:
                if self._write is not None:
                    self._write.exception()  # waits
                self.advance(positions, positions)

    def let_go(self) -> None:
        """Drop the customers, and write no terminals: the partitions belong to somebody else now.

        A round that was under way is dropped, and what it had copied counts as written; marks of
        later ones would claim that it is stored. The next `plan` has everything written again.
        """
        self.writes_terminals = False
        if self._write is not None:
            self._write.exception()  # waits; a failed write is repeated by nobody: it is replayed
            self._write = None
        self._round = self._piece = None
        self.engine.customers = self._no_customers()

    def _no_customers(self) -> EntityTable:
        return EntityTable(CUSTOMER, initial_rows=self._max_customers)

    def report(self, metrics: StreamerMetrics) -> None:
        """Set the gauges that speak of the state."""
        metrics.customers.set(len(self.engine.customers))
        metrics.terminals.set(len(self.engine.terminals))
        metrics.records_written.set(self.written)
        metrics.records_loaded.set(self.loaded)
        metrics.records_created.set(self.created)
        metrics.customers_evicted.set(self.evicted)
        metrics.state_bytes.set(self.engine.customers.nbytes + self.engine.terminals.nbytes)
        metrics.too_late.set(self.engine.too_late)

    def close(self) -> None:
        """End the writer thread."""
        self._writer.shutdown(wait=True)
        self._store.close()

    def _write_out(self, piece: _Piece) -> None:
        self._store.write("customer", piece.customers, self._claim)
        self.written += len(piece.customers)
        self._store.write("terminal", piece.terminals, self._claim)
        self.written += len(piece.terminals)
        if piece.ends is None:
            return
        self._store.write_marks(self._side_marks_name, piece.ends.side_marks, self._claim)
        marks = {str(p): offset for p, offset in piece.ends.positions.items()}
        self._store.write_marks(self._marks, marks, self._claim)
