"""What the gateway needs of Triton and of Kafka; tests put small fakes behind these."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from flagger.triton import ModelName

__all__ = ["Log", "ModelScorer"]


class ModelScorer(Protocol):
    """What the gateway needs of Triton; see `flagger.triton.AsyncScorer`."""

    async def score(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the scores of float32 [n, F] rows; raise ModelError."""

    async def explain(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the contributions of float32 [n, F] rows, float32 [n, F + 1]; raise ModelError."""

    async def is_live(self) -> bool:
        """Return True if the server answers."""

    async def is_ready(self, model: ModelName) -> bool:
        """Return True if the model version is loaded."""

    async def close(self) -> None:
        """Close the connection."""


class Log(Protocol):
    """What the gateway needs of Kafka; see `gateway.producer.TransactionLog`."""

    fatal: str | None

    async def write(self, key: bytes, value: bytes, timeout_ms: float) -> tuple[int, int]:
        """Write a transaction; return its partition and offset once the broker has it.

        Raises TransactionLogError.
        """

    async def write_label(self, value: bytes, timeout_ms: float) -> None:
        """Write a label; return once the broker has it; raise TransactionLogError."""

    async def check(self, timeout_s: float) -> None:
        """Raise TransactionLogError unless the broker answers and has the topic."""

    async def close(self) -> None:
        """Finish what is under way and stop."""
