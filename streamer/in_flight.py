"""One batch between its way to Triton and its way to Kafka."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelRefusedError
from flagger.triton import PendingScores
from streamer.canary import CanaryPart
from streamer.segments import Segment
from streamer.verdicts import Verdicts

__all__ = ["InFlight"]


@dataclass(slots=True)
class InFlight:
    """A segment whose state has moved and whose outputs are not written yet.

    Attributes:
        segment: The messages.
        rows: The segment's rows that Triton scores, intp [n].
        features: What it was sent, float32 [n, F].
        hashes: Fingerprints of the features, uint64 [n].
        forwarded: Rows that the gateway has decided already.
        counted: Rows that moved the state for the first time: they belong in the activity log.
        pending: The live version's answer under way; None if it was not asked.
        canary: The rows that a candidate decides.
        verdicts: What is decided, once the answer is there.
        refused: Rows of the segment that the model server refuses, with why.
    """

    segment: Segment
    rows: npt.NDArray[np.intp]
    features: npt.NDArray[np.float32]
    hashes: npt.NDArray[np.uint64]
    forwarded: list[int]
    counted: npt.NDArray[np.bool_]
    pending: PendingScores | None
    canary: CanaryPart | None = None
    verdicts: Verdicts | None = None
    refused: dict[int, ModelRefusedError] = field(default_factory=dict)

    @property
    def is_live(self) -> npt.NDArray[np.bool_]:
        """Which rows the live version decides, bool [n]."""
        if self.canary is None:
            return np.ones(len(self.rows), dtype=np.bool_)
        return ~self.canary.mask

    def has_answers(self) -> bool:
        """Return True if deciding will not wait for scores."""
        if self.pending is not None and not self.pending.done:
            return False
        return self.canary is None or self.canary.has_answer()

    def wait(self, limit_s: float) -> None:
        """Wait up to `limit_s` seconds for the next answer that this batch needs."""
        if self.verdicts is not None:
            if self.verdicts.explanation is not None:
                self.verdicts.explanation.wait(limit_s)
        elif self.pending is not None and not self.pending.done:
            self.pending.wait(limit_s)
        elif self.canary is not None:
            self.canary.wait(limit_s)

    def keep(self, good: npt.NDArray[np.bool_]) -> None:
        """Drop the other rows; `good` is bool [n]."""
        self.rows, self.hashes = self.rows[good], self.hashes[good]
        self.features = self.features[good]
        if self.canary is not None:
            self.canary.mask = self.canary.mask[good]
