"""Trees are judged: thresholds, measures, and everything that a training writes.

The same for all engines: what `flagger export` and `flagger retrain` find does not tell them apart.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xgboost as xgb

from flagger import __version__
from flagger.features import FEATURE_NAMES, FeatureContract
from flagger.policy import Policy
from flagger.state.records import DAY_MS
from flagger.training_files import checksums_of
from train.fit import Hyperparameters, gain_by_column
from train.metrics import evaluate
from train.money import CostMatrix
from train.report import write_report
from train.sources import ColumnMap
from train.split import Windows
from train.threshold import PolicyTargets, policy_for, policy_to_json, trade_off

__all__ = [
    "NAMED_COLUMNS",
    "Fitted",
    "Judged",
    "TrainingPlan",
    "TrainingResult",
    "judge_and_write",
    "sample_places",
]

NAMED_COLUMNS = ("transaction_id", "event_time", "customer_id", "is_fraud")
"""What a judged window keeps of each transaction, beside score and amount."""
_SAMPLE_ROWS = 5_000
"""Feature rows of the test window that are kept for the parity proof of `flagger export`."""


@dataclass(frozen=True)
class TrainingPlan:
    """What to train on and how; days left out are chosen from the data (see `split`).

    Attributes:
        columns: How the file's layout differs.
        train_from: First day of the train window.
        train_to: Last day of the train window.
        test_from: First day of the test window.
        test_to: Last day of the test window.
        label_delay_days: Days until fraud is known, 0 to 7.
        allow_leakage: Accept a gap between the windows shorter than the label delay.
        seed: Seed of the training; the same file and seed give the same model.
        hyperparameters: Settings of the trees.
        targets: What the thresholds are to achieve.
        search_trials: Search hyperparameters with so many trials first; 0: take them as given.
    """

    columns: ColumnMap = field(default_factory=ColumnMap)
    train_from: date | None = None
    train_to: date | None = None
    test_from: date | None = None
    test_to: date | None = None
    label_delay_days: int = 7
    allow_leakage: bool = False
    seed: int = 0
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    targets: PolicyTargets = field(default_factory=PolicyTargets)
    search_trials: int = 0


@dataclass(frozen=True)
class TrainingResult:
    """A trained model and where it lies.

    Attributes:
        directory: Holds model.json, contract.json, policy.json, metrics.json, scores.parquet,
            model_card.md and plots/.
        booster: The trees, cut behind the best one.
        contract: Columns, vocabularies and label delay.
        policy: Thresholds chosen on the validation.
        windows: What was learned from and judged on.
        metrics: The content of metrics.json.
    """

    directory: Path
    booster: xgb.Booster
    contract: FeatureContract
    policy: Policy
    windows: Windows
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """A window's transactions with their scores, in order of time; see `JudgedWindow`.

    Attributes:
        scores: Scores of the trees, float32 [n].
        amounts: Amounts, float32 [n].
        named: `NAMED_COLUMNS`.
    """

    scores: npt.NDArray[np.float32]
    amounts: npt.NDArray[np.float32]
    named: pa.Table

    @cached_property
    def is_fraud(self) -> npt.NDArray[np.bool_]:
        """Outcomes, bool [n]."""
        outcomes: npt.NDArray[np.bool_] = self.named["is_fraud"].to_numpy()
        return outcomes

    @cached_property
    def customers(self) -> npt.NDArray[Any]:
        """Customer ids, object [n]."""
        customers: npt.NDArray[Any] = self.named["customer_id"].to_numpy()
        return customers

    @cached_property
    def days(self) -> npt.NDArray[np.int64]:
        """Days since 1970, int64 [n]."""
        days: npt.NDArray[np.int64] = self.named["event_time"].cast(pa.int64()).to_numpy() // DAY_MS
        return days

    @property
    def day_count(self) -> int:
        """Days on which there are transactions."""
        return len(np.unique(self.days))


@dataclass(frozen=True)
class Fitted:
    """Trees and what they came from, ready to be judged.

    Attributes:
        booster: The trees, cut behind the best one.
        contract: Columns, vocabularies and label delay.
        windows: What was learned from and will be judged on.
        hyperparameters: Settings of the trees.
        facts: More entries of metrics.json: `data`, `fit`, and what the engine adds.
    """

    booster: xgb.Booster
    contract: FeatureContract
    windows: Windows
    hyperparameters: Hyperparameters
    facts: dict[str, Any]


def _write_scores(path: Path, test: Judged) -> None:
    named = test.named.select(list(NAMED_COLUMNS))
    pq.write_table(named.add_column(3, "score", pa.array(test.scores)), path)


def sample_places(rows: int) -> npt.NDArray[np.intp]:
    """Return which of a test window's rows are kept for `flagger export`: spread evenly."""
    return np.linspace(0, rows - 1, min(_SAMPLE_ROWS, rows), dtype=np.intp)


def _describe_training(plan: TrainingPlan, fitted: Fitted) -> dict[str, Any]:
    windows = fitted.windows
    gains = gain_by_column(fitted.booster, len(FEATURE_NAMES))
    order = np.argsort(-gains, kind="stable")
    return {
        "versions": {
            "flagger": __version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "xgboost": xgb.__version__,
        },
        "seed": plan.seed,
        "label_delay_days": plan.label_delay_days,
        "gap_days": windows.gap_days,
        "leakage": windows.gap_days < plan.label_delay_days,
        "windows": windows.to_dict(),
        "hyperparameters": asdict(fitted.hyperparameters),
        "trees": fitted.booster.num_boosted_rounds(),
        "feature_gain": {FEATURE_NAMES[i]: float(gains[i]) for i in order},
    }


def judge_and_write(
    out: Path,
    plan: TrainingPlan,
    fitted: Fitted,
    parts: tuple[Judged, Judged],
    sample: npt.NDArray[np.float32],
    *,
    on_step: Callable[[str], None] = lambda _: None,
) -> TrainingResult:
    """Choose thresholds on the validation, measure both windows, write everything to `out`.

    Args:
        out: An existing folder; files in it are replaced.
        plan: What was asked for.
        fitted: The trees.
        parts: Validation and test.
        sample: The test window's feature rows at `sample_places`, float32 [m, F].
        on_step: Called with `write` when it begins.
    """
    validation, test = parts
    policy = policy_for(validation.scores, validation, plan.targets)
    costs = plan.targets.costs or CostMatrix()
    metrics = {
        **_describe_training(plan, fitted),
        "feature_hash": fitted.contract.hash,
        **fitted.facts,
        "policy": json.loads(policy_to_json(policy, plan.targets)),
        "costs": asdict(costs),
        "trade_off": trade_off(validation.scores, validation, costs, policy),
        **{
            name: evaluate(part.scores, part.is_fraud, part.customers, part.days, policy)
            for name, part in (("validation", validation), ("test", test))
        },
    }
    on_step("write")
    fitted.booster.save_model(out / "model.json")
    (out / "contract.json").write_text(fitted.contract.to_json() + "\n", encoding="utf-8")
    (out / "policy.json").write_text(policy_to_json(policy, plan.targets) + "\n", encoding="utf-8")
    _write_scores(out / "scores.parquet", test)
    columns = dict(zip(FEATURE_NAMES, sample.T, strict=True))
    pq.write_table(pa.table(columns), out / "feature_sample.parquet")
    metrics["files"] = checksums_of(out)
    write_report(out, metrics, test.scores, test.is_fraud)
    return TrainingResult(out, fitted.booster, fitted.contract, policy, fitted.windows, metrics)
