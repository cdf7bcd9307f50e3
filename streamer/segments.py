"""What travels through the pipeline: messages of the log with what was read in them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from flagger.errors import BadMessageError
from flagger.features import LogPositions
from flagger.wire.decode import DecodedBatch, decode_transactions

__all__ = ["Polled", "Segment", "distinct", "read_segment"]


def distinct(partitions: npt.NDArray[np.int16]) -> list[int]:
    """Return the partitions that occur; for small numbers counting is far faster than sorting."""
    found: list[int] = np.flatnonzero(np.bincount(partitions)).tolist()
    return found


@dataclass(frozen=True, slots=True)
class Polled:
    """Messages as they came from the transactions topic, each partition in log order.

    Attributes:
        values: Message values; b"" where there was none.
        partition: int16 [n].
        offset: int64 [n].
        timestamp_ms: Message timestamps, int64 [n].
        traces: Index of a message -> its `traceparent`; empty unless traces are on.
        originals: The messages as they were sent, where some were not JSON; None: `values` are.
        refused: Index of a message that could not be turned into JSON -> why.
    """

    values: list[bytes]
    partition: npt.NDArray[np.int16]
    offset: npt.NDArray[np.int64]
    timestamp_ms: npt.NDArray[np.int64]
    traces: dict[int, str] = field(default_factory=dict)
    originals: list[bytes] | None = None
    refused: dict[int, BadMessageError] = field(default_factory=dict)

    def original(self, place: int) -> bytes:
        """Return a message as it was sent."""
        return self.values[place] if self.originals is None else self.originals[place]

    def __len__(self) -> int:
        return len(self.values)

    def end_offsets(self) -> dict[int, int]:
        """Return per partition the offset after the last message."""
        return {
            p: int(self.offset[self.partition == p].max()) + 1 for p in distinct(self.partition)
        }


@dataclass(frozen=True, slots=True)
class Segment:
    """Messages and their columns; rows are the good messages, `decoded.bad` the others."""

    polled: Polled
    decoded: DecodedBatch

    def __len__(self) -> int:
        return len(self.decoded)

    @property
    def positions(self) -> LogPositions:
        """Partition and offset of each row."""
        source = self.decoded.source
        return LogPositions(self.polled.partition[source], self.polled.offset[source])

    @property
    def first_ms(self) -> int:
        """Oldest event time among the rows; there must be one."""
        return int(self.decoded.transactions.event_time_ms.min())

    @property
    def last_ms(self) -> int:
        """Newest event time among the rows; there must be one."""
        return int(self.decoded.transactions.event_time_ms.max())

    def select(self, keep: npt.NDArray[np.bool_]) -> Segment:
        """Return the segment of the messages where `keep` (bool [len(polled)]) is True."""
        place = np.cumsum(keep) - 1
        decoded = self.decoded
        rows = np.flatnonzero(keep[decoded.source])
        row_of = np.cumsum(keep[decoded.source]) - 1
        kept = keep.tolist()
        return Segment(
            Polled(
                [value for value, k in zip(self.polled.values, kept, strict=True) if k],
                self.polled.partition[keep],
                self.polled.offset[keep],
                self.polled.timestamp_ms[keep],
                {int(place[i]): t for i, t in self.polled.traces.items() if kept[i]},
                None
                if self.polled.originals is None
                else [o for o, k in zip(self.polled.originals, kept, strict=True) if k],
                {int(place[i]): error for i, error in self.polled.refused.items() if kept[i]},
            ),
            DecodedBatch(
                transactions=decoded.transactions.take(rows),
                source=place[decoded.source[rows]],
                text=decoded.text,
                spans=decoded.spans[rows],
                decided={
                    int(row_of[row]): decision
                    for row, decision in decoded.decided.items()
                    if kept[decoded.source[row]]
                },
                bad=[(int(place[i]), error) for i, error in decoded.bad if kept[i]],
            ),
        )


def read_segment(polled: Polled, now_ms: int) -> Segment:
    """Read the messages; `now_ms` bounds how far in the future an event may lie."""
    decoded = decode_transactions(polled.values, now_ms, polled.timestamp_ms)
    if polled.refused:
        bad = [(i, polled.refused.get(i, error)) for i, error in decoded.bad]
        decoded = replace(decoded, bad=bad)
    return Segment(polled, decoded)
