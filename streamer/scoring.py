"""Scores that survive the model server: waits while it is away, finds the row it refuses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelRefusedError, ModelUnavailableError
from flagger.triton import ModelName, PendingScores, Scorer
from streamer.health import Health

__all__ = ["PatientScorer"]

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0
_log = logging.getLogger(__name__)


class PatientScorer:
    """Asks again as long as it takes; the messages wait in Kafka meanwhile, nothing is lost.

    With `patience_ms` it gives up where the server has been away for so long, and from then on
    asks only once for each batch until the server is back.

    Args:
        scorer: The connection.
        model: Whom to ask.
        timeout_ms: Limit of one request.
        keep_going: Asked before each further attempt; False ends the waiting.
        on_error: Called with `unavailable` or `refused` for each failed request.
        before_waiting: Called when a wait begins: what is decided goes out, no transaction hangs.
        health: Told what the streamer waits for.
        patience_ms: How long to wait for a server that is away; None: as long as it takes.
    """

    def __init__(
        self,
        scorer: Scorer,
        model: ModelName,
        *,
        timeout_ms: int,
        keep_going: Callable[[], bool],
        on_error: Callable[[str], None],
        before_waiting: Callable[[], None],
        health: Health,
        patience_ms: int | None = None,
    ) -> None:
        self._scorer = scorer
        self._model = model
        self._wait_s = timeout_ms / 1000 + 1
        self._keep_going = keep_going
        self._on_error = on_error
        self._before_waiting = before_waiting
        self._health = health
        self._patience_s = None if patience_ms is None else patience_ms / 1000
        self._away_since_s: float | None = None

    def use(self, model: ModelName) -> None:
        """Ask another model from now on; requests under way must have been answered."""
        self._model = model

    def submit(self, rows: npt.NDArray[np.float32]) -> PendingScores:
        """Send float32 [n, F] rows; returns at once."""
        return self._scorer.submit(rows, self._model)

    def result(
        self, pending: PendingScores, rows: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], dict[int, ModelRefusedError]]:
        """Return the scores, float32 [n], and the rows that the server refuses (score NaN).

        Raises:
            ModelUnavailableError: The server is away and `keep_going` said to stop, or the
                patience is at its end: decide without it.
            ModelRefusedError: The server refuses any row: the model is wrong, not the data.
        """
        try:
            return self._wait(pending, rows), {}
        except ModelRefusedError:
            harmless = np.zeros((1, rows.shape[1]), dtype=np.float32)
            self._wait(self.submit(harmless), harmless)
            return self._bisect(rows)

    def _wait(
        self, pending: PendingScores, rows: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        pause_s = _FIRST_WAIT_S
        while True:
            try:
                scores = pending.result(self._wait_s)
            except ModelUnavailableError as error:
                self._on_error("unavailable")
                if self._gives_up(error):
                    raise
                _log.warning("%s Waiting %.2f s, then asking again.", error, pause_s)
            except ModelRefusedError:
                self._on_error("refused")
                raise
            else:
                self._away_since_s = None
                self._health.goes_on("triton")
                return scores
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_WAIT_S)
            pending = self.submit(rows)

    def _gives_up(self, error: ModelUnavailableError) -> bool:
        now_s = time.monotonic()
        if self._away_since_s is None:
            self._away_since_s = now_s
            self._before_waiting()
        self._health.waits("triton", str(error))
        if self._patience_s is not None and now_s - self._away_since_s >= self._patience_s:
            return True
        return not self._keep_going()

    def _bisect(
        self, rows: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], dict[int, ModelRefusedError]]:
        """Score the halves on their own until the refused rows stand alone."""
        scores = np.full(len(rows), np.nan, dtype=np.float32)
        refused: dict[int, ModelRefusedError] = {}
        parts = [(0, len(rows))]
        while parts:
            start, end = parts.pop()
            part = np.ascontiguousarray(rows[start:end])
            try:
                scores[start:end] = self._wait(self.submit(part), part)
            except ModelRefusedError as error:
                if end - start == 1:
                    refused[start] = error
                else:
                    middle = (start + end) // 2
                    parts += [(start, middle), (middle, end)]
        return scores, refused
