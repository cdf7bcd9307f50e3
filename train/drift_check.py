"""Replays a file through a version's features and score, and through the drift window.

The window, its distances and the alarms are those of the streamer (`flagger.drift`), but every
transaction is looked at, not a sample. So what this says about a file, for example after how many
transactions a drift is seen, holds for the streamer counted in transactions that it looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xgboost as xgb

from flagger.drift import Alarm, Distances, DriftLimits, DriftReference, DriftWindow, alarms
from flagger.errors import ConfigurationError
from flagger.feature_sample import SAMPLE_FILE, read_sample
from flagger.features import CATEGORY_FIELDS, DUPLICATE, TransactionBatch
from flagger.features.hashing import key_of
from flagger.models import ModelVersion, version_folder
from train.fit import predict
from train.replay import Replay
from train.sources import to_batch

__all__ = ["DriftReport", "Injection", "check_drift", "reference_of"]

_CHUNK_ROWS = 10_000
_COUNTRY = CATEGORY_FIELDS.index("country")
_NEW_COUNTRY = "a country that no model knows"


@dataclass(frozen=True)
class Injection:
    """A drift made on purpose, to see whether and when it is noticed.

    Attributes:
        from_ms: The first transaction that is changed, epoch milliseconds.
        amount_factor: All amounts times this.
        new_country_share: This share of the transactions comes from a country never seen before.
    """

    from_ms: int
    amount_factor: float = 1.0
    new_country_share: float = 0.0

    def apply(self, batch: TransactionBatch, rng: np.random.Generator) -> TransactionBatch:
        """Return the batch with the drift; chance decides who comes from the new country."""
        late = batch.event_time_ms >= self.from_ms
        chosen = late & (rng.random(len(batch)) < self.new_country_share)
        keys = batch.category_keys.copy()
        keys[chosen, _COUNTRY] = key_of(_NEW_COUNTRY)
        amount = np.where(late, batch.amount * self.amount_factor, batch.amount)
        return replace(batch, amount=amount, category_keys=keys)


@dataclass
class DriftReport:
    """What was seen; distances are those of the last window.

    Attributes:
        version: The model version.
        reference_rows: Rows that it was compared with.
        judged: Transactions that went through the window.
        injected_at: How many of them came before the injected drift; None: none was injected.
        window_ends: Judged transactions at the end of each window, by place.
        psi: PSI by window and column of `flagger.drift.NAMES`, float64 rows.
        first_alarm_at: Judged transactions when the first alarm was raised; None: none was.
        first_alarms: What it said.
        alarmed_windows: Windows with an alarm.
        distances: Of the last window; None: fewer transactions than a window has.
        last_alarms: Of the last window.
    """

    version: str
    reference_rows: int
    judged: int = 0
    injected_at: int | None = None
    window_ends: list[int] = field(default_factory=list)
    psi: list[npt.NDArray[np.float64]] = field(default_factory=list)
    first_alarm_at: int | None = None
    first_alarms: list[Alarm] = field(default_factory=list)
    alarmed_windows: int = 0
    distances: Distances | None = None
    last_alarms: list[Alarm] = field(default_factory=list)

    @property
    def detection_delay(self) -> int | None:
        """Transactions from the injected drift to the alarm; None: no drift, or not noticed."""
        if self.injected_at is None or self.first_alarm_at is None:
            return None
        return self.first_alarm_at - self.injected_at

    def note(self, window: DriftWindow, limits: DriftLimits) -> None:
        """Take note of one window."""
        self.distances = window.distances()
        self.window_ends.append(self.judged)
        self.psi.append(self.distances.psi)
        self.last_alarms = alarms(self.distances, limits)
        self.alarmed_windows += bool(self.last_alarms)
        if self.last_alarms and self.first_alarm_at is None:
            self.first_alarm_at, self.first_alarms = self.judged, self.last_alarms


def reference_of(repository: Path, model: ModelVersion) -> tuple[DriftReference, xgb.Booster]:
    """Return what a version was judged on, and its trees.

    Raises:
        ConfigurationError: Its training left no feature sample.
    """
    folder = version_folder(repository, model.version)
    rows = read_sample(folder / SAMPLE_FILE, model.contract.names)
    if rows is None or not len(rows):
        raise ConfigurationError(
            f"Version {model.version} has no {SAMPLE_FILE}, so there is nothing to compare with. "
            f"Train and export it again with this release."
        )
    booster = xgb.Booster()
    booster.load_model(folder / "xgboost.json")
    return DriftReference.of(rows, predict(booster, rows)), booster


def check_drift(
    table: pa.Table,
    repository: Path,
    model: ModelVersion,
    *,
    judge_from_ms: int,
    limits: DriftLimits | None = None,
    injection: Injection | None = None,
    seed: int = 0,
    on_rows: Callable[[int], None] = lambda _: None,
) -> DriftReport:
    """Replay a table and compare its windows with what the version was judged on.

    Args:
        table: Transactions in `train.sources.SCHEMA`, ordered by time.
        repository: The model repository.
        model: The version, from `load_version`.
        judge_from_ms: Earlier transactions only feed the features, epoch milliseconds.
        limits: From where on a distance is an alarm; None: the defaults.
        injection: A drift to make; None: the table as it is.
        seed: Of the injection's chance.
        on_rows: Called with the number of transactions read so far.

    Raises:
        ConfigurationError: The version has nothing to compare with.
    """
    reference, booster = reference_of(repository, model)
    report = DriftReport(model.version, reference.rows)
    window, history = DriftWindow(reference), Replay(model.contract)
    limits, rng = limits or DriftLimits(), np.random.default_rng(seed)
    read = 0
    for chunk in table.to_batches(max_chunksize=_CHUNK_ROWS):
        outcomes = pc.fill_null(chunk.column("is_fraud"), False).to_numpy(zero_copy_only=False)
        batch = to_batch(chunk)
        if injection is not None:
            batch = injection.apply(batch, rng)
        result = history.advance(batch, outcomes)
        read += len(batch)
        on_rows(read)
        kept = (batch.event_time_ms >= judge_from_ms) & (result.flags & DUPLICATE == 0)
        if not kept.any():
            continue
        times = batch.event_time_ms[kept]
        if injection is not None and report.injected_at is None and times[-1] >= injection.from_ms:
            report.injected_at = report.judged + int((times < injection.from_ms).sum())
        rows, keys = result.rows[kept], batch.category_keys[kept]
        _feed(report, window, (rows, predict(booster, rows), keys), limits)
    return report


def _feed(
    report: DriftReport,
    window: DriftWindow,
    parts: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.uint64]],
    limits: DriftLimits,
) -> None:
    rows, scores, keys = parts
    at = 0
    while at < len(rows):
        blocks = window.blocks
        taken = window.add(rows[at:], scores[at:], keys[at:])
        at += taken
        report.judged += taken
        if window.blocks > blocks and window.is_full:
            report.note(window, limits)
