"""What stands beside the live version: the watch for drift, the shadow and the canary."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from flagger.canary import Canary
from flagger.errors import ConfigurationError
from flagger.features import TransactionBatch
from flagger.models import ModelVersion
from flagger.settings import Settings
from flagger.trials import Trials, TrialsFollower, end_canary
from flagger.triton import ModelName, Scorer
from streamer.canary import CanaryLane, CanaryPart
from streamer.drift_watch import DriftWatch
from streamer.metrics import StreamerMetrics
from streamer.shadow import Shadow

__all__ = ["TriedModels"]

_log = logging.getLogger(__name__)


class TriedModels:
    """Follows the pointer's trials, and shows decided transactions to whoever looks at them.

    Args:
        model: The live version.
        scorer: Connection to Triton.
        settings: Limits; the repository.
        metrics: Where all of it shows.
    """

    def __init__(
        self,
        model: ModelVersion,
        scorer: Scorer,
        settings: Settings,
        metrics: StreamerMetrics,
    ) -> None:
        self._live = model
        self._scorer = scorer
        self._settings = settings
        self._metrics = metrics
        self._drift = DriftWatch(model, scorer, settings, metrics)
        self._follower = TrialsFollower(settings.model_repository, self.check)
        self._trials = Trials()
        self._shadow: Shadow | None = None
        self._lane: CanaryLane | None = None
        self._show_versions()

    @property
    def live_version(self) -> str:
        """The version that decides, save for the canary's customers."""
        return self._live.version

    def check(self, model: ModelVersion) -> None:
        """Raise ConfigurationError unless Triton serves a version."""
        entry = ModelName(self._settings.streamer_model, model.version)
        if not self._scorer.is_ready(entry):
            raise ConfigurationError(
                f"Triton does not serve {entry.name} version {entry.version}; load it there first "
                f"(`flagger export` does)."
            )

    def use(self, model: ModelVersion) -> None:
        """Go on beside another live version."""
        self._live = model
        self._drift.use(model)
        self._shadow = self._made_shadow()
        self._show_versions()

    def changed(self) -> Trials | None:
        """Return what is tried from now on, once after a change: `apply` it between batches.

        Call it in every round: the shadow's answers are taken here, too.
        """
        if self._shadow is not None:
            self._shadow.take_answer()
        return self._follower.changed()

    def apply(self, trials: Trials) -> None:
        """Try these; all batches must be written."""
        self._trials = trials
        self._shadow = self._made_shadow()
        if self._lane is not None:
            self._lane.close()
        self._lane = None
        if trials.canary is not None:
            self._lane = CanaryLane(*trials.canary, self._settings, self._metrics, self._end)
        self._show_versions()

    def split(
        self,
        rows: npt.NDArray[np.float32],
        transactions: TransactionBatch,
        places: npt.NDArray[np.intp],
    ) -> CanaryPart | None:
        """Send to the canary what is its; None: nothing is.

        Args:
            rows: Feature rows, float32 [n, F].
            transactions: The batch.
            places: Which of its transactions they are, intp [n].
        """
        if self._lane is None or not len(rows):
            return None
        keys, categories = transactions.customer_key, transactions.category_keys
        return self._lane.split(rows, keys[places], categories[places])

    def observe(
        self,
        rows: npt.NDArray[np.float32],
        scores: npt.NDArray[np.float32],
        category_keys: npt.NDArray[np.uint64],
    ) -> None:
        """Show what the live version decided.

        Args:
            rows: Feature rows, float32 [n, F].
            scores: Their scores, float32 [n].
            category_keys: Keys of the categories, uint64 [n, 4].
        """
        self._drift.observe(rows, scores, category_keys)
        if self._shadow is not None:
            self._shadow.observe(rows, scores, category_keys)

    def close(self) -> None:
        """Close the connections."""
        if self._lane is not None:
            self._lane.close()

    def _made_shadow(self) -> Shadow | None:
        candidate = self._trials.shadow
        if candidate is None or candidate.version == self._live.version:
            return None
        return Shadow(candidate, self._live.policy, self._scorer, self._settings, self._metrics)

    def _end(self, canary: Canary, why: str) -> None:
        """Take the canary out of the pointer, so that the other doors stop too."""
        by = f"flagger stream, instance {self._settings.instance}"
        end_canary(self._settings.model_repository, canary, why=why, by=by)

    def _show_versions(self) -> None:
        info = self._metrics.model_info
        info.clear()
        info.labels("live", self._live.version).set(1)
        if self._trials.shadow is not None:
            info.labels("shadow", self._trials.shadow.version).set(1)
        if self._trials.canary is not None:
            info.labels("canary", self._trials.canary[1].version).set(1)
