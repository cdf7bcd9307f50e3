"""Asks Triton why transactions were flagged, without ever holding a decision back.

An explanation is an extra. What does not come in time, or is refused, is left out and counted, and
after a failure nothing is asked for a while, so that a model server that hangs costs one time-out
per pause and not one per batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelError
from flagger.models import EXPLAIN_ENTRY
from flagger.triton import MAX_EXPLAINED_ROWS, ModelName, Pending, Scorer

__all__ = ["REST_S", "Explainer", "PendingExplanations"]

REST_S = 1.0
"""How long nothing is asked after a failure."""


class PendingExplanations:
    """Explanations under way, one small request after the other; `result` waits for them.

    `done` also sends the next request, so whoever polls it keeps the work going meanwhile.

    Args:
        rows: What to explain, float32 [n, F].
        ask: Sends up to MAX_EXPLAINED_ROWS rows with a time limit in milliseconds; None: nothing
            is asked, nothing explained.
        deadline_s: When to stop waiting, on the clock of `clock_s`.
        clock_s: Returns monotonic time, seconds.
        on_missing: Called with the number of rows that stay unexplained, if any.
    """

    def __init__(
        self,
        rows: npt.NDArray[np.float32],
        ask: Callable[[npt.NDArray[np.float32], int], Pending] | None,
        deadline_s: float,
        clock_s: Callable[[], float],
        on_missing: Callable[[int], None],
    ) -> None:
        self._rows = rows
        self._ask = ask
        self._deadline_s = deadline_s
        self._clock_s = clock_s
        self._on_missing = on_missing
        self._contributions = np.full((len(rows), rows.shape[1] + 1), np.nan, dtype=np.float32)
        self._explained = 0
        self._pending: Pending | None = None
        self._send()

    @property
    def done(self) -> bool:
        """True if `result` will not wait."""
        while self._pending is not None and (self._pending.done or self._left_s() <= 0.0):
            self._receive()
        return self._pending is None

    def wait(self, limit_s: float) -> None:
        """Wait up to `limit_s` seconds for the answer under way; then ask for `done`."""
        if self._pending is not None:
            self._pending.wait(min(limit_s, self._left_s()))

    def result(self) -> npt.NDArray[np.float32]:
        """Return the contributions, float32 [n, F + 1]; rows of NaN are unexplained. Call it once.

        For `flagger.reasons.ReasonWriter.write`. Raises nothing.
        """
        while self._pending is not None:
            self._receive()
        if missing := len(self._rows) - self._explained:
            self._on_missing(missing)
        return self._contributions

    def _left_s(self) -> float:
        return max(self._deadline_s - self._clock_s(), 0.0)

    def _send(self) -> None:
        part = self._rows[self._explained : self._explained + MAX_EXPLAINED_ROWS]
        self._pending = None
        if self._ask is not None and len(part):
            left_ms = max(int(self._left_s() * 1000), 1)
            self._pending = self._ask(np.ascontiguousarray(part), left_ms)

    def _receive(self) -> None:
        """Take one answer and ask on; after a failure the rest stays unexplained."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            answer = pending.result(self._left_s())
        except ModelError:
            return
        if answer.shape[1] == self._contributions.shape[1]:
            self._contributions[self._explained : self._explained + len(answer)] = answer
            self._explained += len(answer)
            self._send()


class Explainer:
    """Explanations over the streamer's connection.

    Args:
        scorer: The connection.
        version: The version that scores; the same explains.
        timeout_ms: Limit of one `submit`, all its requests together; 0: never ask, count nothing.
        on_missing: Called with the number of rows that went without an explanation, for a metric.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        scorer: Scorer,
        version: str,
        *,
        timeout_ms: int,
        on_missing: Callable[[int], None],
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scorer = scorer
        self._timeout_ms = timeout_ms
        self._on_missing = on_missing if timeout_ms else _ignore
        self._clock_s = clock_s
        self._rests_until_s = float("-inf")
        self.use(version)

    def use(self, version: str) -> None:
        """Ask another version from now on."""
        self._model = ModelName(EXPLAIN_ENTRY, version)

    def submit(self, rows: npt.NDArray[np.float32]) -> PendingExplanations:
        """Ask for the contributions of float32 [n, F] rows, in small requests; returns at once."""
        now_s = self._clock_s()
        asks = self._timeout_ms > 0 and now_s >= self._rests_until_s
        return PendingExplanations(
            rows,
            self._ask if asks else None,
            now_s + self._timeout_ms / 1000,
            self._clock_s,
            self._failed if asks else self._on_missing,
        )

    def _ask(self, rows: npt.NDArray[np.float32], timeout_ms: int) -> Pending:
        return self._scorer.explain(rows, self._model, timeout_ms)

    def _failed(self, missing: int) -> None:
        self._rests_until_s = self._clock_s() + REST_S
        self._on_missing(missing)


def _ignore(_: int) -> None:
    """Count nothing."""
