"""A candidate trained on what has happened since, and judged beside the live version.

The recipe is the live version's: its hyperparameters and what its thresholds aim at. Both are
judged on the candidate's test window, which neither has learned from as long as the live version is
older. Nothing is exported or published here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import xgboost as xgb

from flagger.errors import ConfigurationError
from flagger.models import ModelVersion, read_metrics, version_folder
from train.fit import Hyperparameters, predict
from train.metrics import evaluate
from train.money import CostMatrix, money_saved
from train.pipeline import TrainingPlan, TrainingResult, train_model
from train.rows import replay_windows, require_both_outcomes
from train.sources import read_sorted
from train.threshold import PolicyTargets

__all__ = ["COMPARISON_FILE", "MEASURES", "Retrained", "plan_like", "retrain"]

COMPARISON_FILE = "comparison.json"
MEASURES: dict[str, tuple[str, ...]] = {
    "ROC AUC": ("roc_auc",),
    "average precision": ("average_precision",),
    "recall at 0.5 % false positives": ("recall_at_fpr", "0.005"),
    "flags: share": ("flags", "flagged_share"),
    "flags: precision": ("flags", "precision"),
    "flags: recall": ("flags", "recall"),
    "declines: precision": ("declines", "precision"),
    "declines: recall": ("declines", "recall"),
    "money saved a day": ("money_saved_per_day",),
}
"""What is compared: words -> where it stands in the measures."""


@dataclass(frozen=True)
class Retrained:
    """A candidate beside the live version.

    Attributes:
        result: The training.
        live: Measures of the live version on the candidate's test window.
        candidate: The same of the candidate.
        live_has_seen: True if the live version learned from days of the test window: its measures
            are then too good.
    """

    result: TrainingResult
    live: dict[str, Any]
    candidate: dict[str, Any]
    live_has_seen: bool

    def rows(self) -> list[tuple[str, float, float]]:
        """Return each of `MEASURES` with the live version's and the candidate's value."""
        return [
            (words, _at(self.live, path), _at(self.candidate, path))
            for words, path in MEASURES.items()
        ]


def plan_like(
    repository: Path, model: ModelVersion, *, test_to: date | None, seed: int, search_trials: int
) -> TrainingPlan:
    """Return a plan with a version's recipe for newer data.

    Args:
        repository: The model repository.
        model: The version whose recipe it is.
        test_to: Last day to judge on; None: the last one of the data.
        seed: Seed of the training.
        search_trials: Search hyperparameters with so many trials; 0: the version's own.

    Raises:
        ConfigurationError: The version's files do not tell its recipe.
    """
    folder = version_folder(repository, model.version)
    try:
        metrics = read_metrics(repository, model.version)
        policy = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
        names = {field.name for field in fields(Hyperparameters)}
        given = metrics.get("hyperparameters", {})
        hyperparameters = Hyperparameters(**{n: v for n, v in given.items() if n in names})
        targets = dict(policy.get("targets", {}))
        if targets.get("costs"):
            targets["costs"] = CostMatrix(**targets["costs"])
        aims = PolicyTargets(**targets)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"Version {model.version} does not tell its recipe ({error!r}). Use `flagger train`."
        ) from error
    return TrainingPlan(
        test_to=test_to,
        label_delay_days=model.contract.label_delay_days,
        seed=seed,
        hyperparameters=hyperparameters,
        targets=aims,
        search_trials=search_trials,
    )


def retrain(
    data: Path,
    out: Path,
    plan: TrainingPlan,
    repository: Path,
    live: ModelVersion,
    *,
    on_step: Callable[[str], None] = lambda _: None,
    on_trial: Callable[[int, float], None] = lambda _number, _best: None,
) -> Retrained:
    """Train a candidate and judge it beside the live version; writes `comparison.json`.

    Args:
        data: Transactions with outcomes.
        out: Folder of the training.
        plan: How to train, from `plan_like`.
        repository: The model repository.
        live: The live version.
        on_step: Called with each step when it begins.
        on_trial: Called after each trial of a search.

    Raises:
        DataError: The file cannot be used, or a window lacks an outcome.
        ConfigurationError: Windows that do not fit the data.
    """
    result = train_model(data, out, plan, on_step=on_step, on_trial=on_trial)
    on_step("compare")
    table = read_sorted(data, plan.columns)
    costs = plan.targets.costs or CostMatrix()
    measures = []
    booster = xgb.Booster()
    booster.load_model(version_folder(repository, live.version) / "xgboost.json")
    for trees, contract, policy in (
        (booster, live.contract, live.policy),
        (result.booster, result.contract, result.policy),
    ):
        times = table["event_time"].cast(pa.int64()).to_numpy()
        masks = {"test": result.windows.masks(times)["test"]}
        test = replay_windows(table, masks, contract)[0]["test"]
        require_both_outcomes("test", test.is_fraud, data)
        scores = predict(trees, test.rows)
        found = evaluate(scores, test.is_fraud, test.customers, test.days, policy)
        saved = money_saved(policy.decide(scores), test.is_fraud, test.amounts, costs)
        measures.append(found | {"money_saved_per_day": saved / max(test.day_count, 1)})
    seen_to = (live.manifest.get("data_window") or {}).get("train_to", "")
    has_seen = seen_to >= result.windows.test_from.isoformat()
    retrained = Retrained(result, measures[0], measures[1], has_seen)
    content = {
        "live": {"version": live.version, **measures[0]},
        "candidate": measures[1],
        "windows": result.windows.to_dict(),
        "live_has_seen_the_test_window": has_seen,
    }
    text = json.dumps(content, indent=2, allow_nan=False)
    (out / COMPARISON_FILE).write_text(text + "\n", encoding="utf-8")
    return retrained


def _at(measures: dict[str, Any], path: tuple[str, ...]) -> float:
    found: Any = measures
    for name in path:
        found = found[name]
    return float(found)
