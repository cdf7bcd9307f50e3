"""Looks at a bounded sample of what is decided, and shows how far it is from the training's days.

The reference's scores are asked of Triton once for each version, without waiting: what is watched
is the version as it is served. The window begins anew with another version or after a restart;
until it is full nothing is said. At most `FLAGGER_DRIFT_ROWS_PER_S` transactions a second are
looked at, evenly spread over each batch: about 2 us each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flagger.drift import (
    NAMES,
    Distances,
    DriftLimits,
    DriftReference,
    DriftWindow,
    alarms,
)
from flagger.errors import ConfigurationError, ModelError
from flagger.feature_sample import SAMPLE_FILE, read_sample
from flagger.features import CATEGORY_FIELDS
from flagger.models import ModelVersion, version_folder
from flagger.row_budget import RowBudget
from flagger.settings import Settings
from flagger.triton import ModelName, PendingScores, Scorer
from streamer.metrics import StreamerMetrics

__all__ = ["DriftWatch", "evenly"]

_KINDS = ("feature", "score", "unknown")
_ANSWER_S = 0.001
"""The answer is there already when it is taken."""
_RETRY_S = 10.0
_log = logging.getLogger(__name__)


def evenly(n: int, taken: int) -> npt.NDArray[np.intp]:
    """Return `taken` of n places, evenly spread, intp."""
    return (np.arange(taken) * n // max(taken, 1)).astype(np.intp)


class DriftWatch:
    """Compares what is decided with what the live version was judged on.

    Args:
        model: The live version.
        scorer: Connection over which the reference's scores are asked for.
        settings: Limits; the repository.
        metrics: Where it shows.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        model: ModelVersion,
        scorer: Scorer,
        settings: Settings,
        metrics: StreamerMetrics,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scorer = scorer
        self._settings = settings
        self._metrics = metrics
        self._clock_s = clock_s
        self._limits = DriftLimits(settings.drift_psi_limit, settings.drift_unknown_limit)
        self._budget = RowBudget(settings.drift_rows_per_s, clock_s)
        self._begin(model)

    def use(self, model: ModelVersion) -> None:
        """Compare with another version's days from now on; other thresholds change nothing."""
        if model.version != self._entry.version:
            self._begin(model)

    def _begin(self, model: ModelVersion) -> None:
        self._window: DriftWindow | None = None
        self._pending: PendingScores | None = None
        self._retry_s = self._clock_s()
        self._entry = ModelName(self._settings.streamer_model, model.version)
        self._sample = self._read(self._settings.model_repository, model)
        for gauge in (self._metrics.drift_psi, self._metrics.drift_ks, self._metrics.drift_missing):
            gauge.clear()
        for kind in _KINDS:
            self._metrics.drift_alarm.labels(kind).set(0)

    def observe(
        self,
        rows: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        category_keys: npt.NDArray[np.uint64],
    ) -> None:
        """Take what was decided by the model, or as much of it as may be looked at.

        Args:
            rows: Feature rows, float32 [n, F].
            scores: Their scores, float32 [n].
            category_keys: Keys of `CATEGORY_FIELDS`, uint64 [n, 4].
        """
        if self._sample is None:
            return
        if self._window is None:
            self._window = self._made_window(self._sample)
            return
        taken = self._budget.take(len(rows))
        if not taken:
            return
        self._metrics.drift_rows.inc(taken)
        chosen = evenly(len(rows), taken)
        rows, scores, category_keys = rows[chosen], scores[chosen], category_keys[chosen]
        blocks, at = self._window.blocks, 0
        while at < taken:
            at += self._window.add(rows[at:], scores[at:], category_keys[at:])
        if self._window.is_full and self._window.blocks > blocks:
            self._show(self._window.distances())

    def _read(self, repository: Path, model: ModelVersion) -> npt.NDArray[np.float32] | None:
        if not self._settings.drift_rows_per_s:
            return None
        try:
            path = version_folder(repository, model.version) / SAMPLE_FILE
            sample = read_sample(path, model.contract.names)
        except ConfigurationError as error:
            _log.warning("Drift of version %s is not watched: %s", model.version, error)
            return None
        if sample is None or not len(sample):
            _log.warning("Drift of version %s is not watched: no %s", model.version, SAMPLE_FILE)
            return None
        limit = self._settings.max_batch_rows
        return sample[evenly(len(sample), min(len(sample), limit))]

    def _made_window(self, sample: npt.NDArray[np.float32]) -> DriftWindow | None:
        """Return the window once Triton has scored the sample; asks for it first."""
        if self._pending is None:
            if self._clock_s() >= self._retry_s:
                self._pending = self._scorer.submit(sample, self._entry)
            return None
        if not self._pending.done:
            return None
        pending, self._pending = self._pending, None
        try:
            scores = pending.result(_ANSWER_S)
        except ModelError as error:
            self._retry_s = self._clock_s() + _RETRY_S
            _log.warning("Drift is not watched yet: %s", error)
            return None
        return DriftWindow(DriftReference.of(sample, scores))

    def _show(self, found: Distances) -> None:
        metrics = self._metrics
        for i, name in enumerate(NAMES):
            metrics.drift_psi.labels(name).set(found.psi[i])
            metrics.drift_ks.labels(name).set(found.ks[i])
            metrics.drift_missing.labels(name).set(found.missing[i])
        for i, field in enumerate(CATEGORY_FIELDS):
            metrics.drift_unknown.labels(field, "absent").set(found.absent[i])
            metrics.drift_unknown.labels(field, "new").set(found.unknown[i] - found.absent[i])
        raised = alarms(found, self._limits)
        for kind in _KINDS:
            metrics.drift_alarm.labels(kind).set(any(alarm.kind == kind for alarm in raised))
