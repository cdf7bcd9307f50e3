"""From a file of transactions to a trained and judged model: what `flagger train` runs."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xgboost as xgb

from flagger import __version__
from flagger.errors import ConfigurationError, DataError
from flagger.features import FEATURE_NAMES, FeatureContract
from flagger.policy import Policy
from train.fit import Hyperparameters, fit_booster, gain_by_column, predict
from train.metrics import evaluate
from train.money import CostMatrix
from train.report import write_report
from train.rows import WindowRows, replay_windows, require_both_outcomes
from train.search import SearchResult, search, search_periods
from train.sources import ColumnMap, read_sorted
from train.split import Windows, choose_windows
from train.threshold import PolicyTargets, policy_for, policy_to_json, trade_off
from train.vocabulary import build_vocabularies

__all__ = ["STEPS", "TrainingPlan", "TrainingResult", "train_model"]

STEPS = ("read", "replay", "fit", "evaluate", "write")
"""What `train_model` does, in order; a search comes before `replay` as `search`."""

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


def _write_scores(
    path: Path, table: pa.Table, test: WindowRows, scores: npt.NDArray[np.float32]
) -> None:
    named = table.select(["transaction_id", "event_time", "customer_id", "is_fraud"])
    named = named.take(test.place).add_column(3, "score", pa.array(scores))
    pq.write_table(named, path)


def _write_sample(path: Path, rows: npt.NDArray[np.float32]) -> None:
    """Write evenly spread feature rows: the export proves itself on real ones too."""
    chosen = np.linspace(0, len(rows) - 1, min(_SAMPLE_ROWS, len(rows)), dtype=np.intp)
    pq.write_table(pa.table(dict(zip(FEATURE_NAMES, rows[chosen].T, strict=True))), path)


def _describe(table: pa.Table, data: Path, duplicates: int) -> dict[str, Any]:
    return {
        "file": data.name,
        "transactions": table.num_rows,
        "frauds": int(pc.sum(table["is_fraud"]).as_py()),
        "unlabelled": table["is_fraud"].null_count,
        "duplicates": duplicates,
        "first_event_time": table["event_time"][0].as_py().isoformat(),
        "last_event_time": table["event_time"][-1].as_py().isoformat(),
    }


def _describe_training(
    plan: TrainingPlan, windows: Windows, hyperparameters: Hyperparameters, booster: xgb.Booster
) -> dict[str, Any]:
    gains = gain_by_column(booster, len(FEATURE_NAMES))
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
        "hyperparameters": asdict(hyperparameters),
        "trees": booster.num_boosted_rounds(),
        "feature_gain": {FEATURE_NAMES[i]: float(gains[i]) for i in order},
    }


def _load(data: Path, plan: TrainingPlan) -> tuple[pa.Table, Windows, FeatureContract]:
    """Read the file, fix the windows, and build the vocabularies from the rows to fit on."""
    table = read_sorted(data, plan.columns)
    if table["is_fraud"].null_count == table.num_rows:
        raise DataError(
            file=str(data),
            column="is_fraud",
            problem="no transaction has an outcome",
            remedy="Training needs the column is_fraud; name it with --columns map.toml",
        )
    times = table["event_time"].cast(pa.int64()).to_numpy()
    windows = choose_windows(
        int(times[0]),
        int(times[-1]),
        plan.label_delay_days,
        train_from=plan.train_from,
        train_to=plan.train_to,
        test_from=plan.test_from,
        test_to=plan.test_to,
    )
    if not plan.allow_leakage:
        windows.require_gap(plan.label_delay_days)
    vocabularies = build_vocabularies(table, windows.masks(times)["fit"])
    return table, windows, FeatureContract(vocabularies, plan.label_delay_days)


def _make_folder(out: Path) -> None:
    """Make the output folder before the work, so that a wrong --out does not cost minutes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"Cannot write to --out {out}: {error.strerror}.") from error


def _window_rows(
    table: pa.Table, windows: Windows, contract: FeatureContract, data: Path
) -> tuple[tuple[WindowRows, WindowRows, WindowRows], int]:
    """Return the rows of fit, validation and test, and the number of repeated transactions."""
    masks = windows.masks(table["event_time"].cast(pa.int64()).to_numpy())
    parts, duplicates = replay_windows(table, masks, contract)
    for name, part in parts.items():
        require_both_outcomes(name, part.is_fraud, data)
    return (parts["fit"], parts["validation"], parts["test"]), duplicates


def _search(
    table: pa.Table,
    windows: Windows,
    plan: TrainingPlan,
    paths: tuple[Path, Path],
    on_step: Callable[[str], None],
    on_trial: Callable[[int, float], None],
) -> SearchResult | None:
    """Search hyperparameters if the plan says so; `paths` are the data file and the folder."""
    if plan.search_trials == 0:
        return None
    on_step("search")
    periods = search_periods(table, windows, plan.label_delay_days, paths[0])
    return search(
        periods,
        plan.search_trials,
        paths[1],
        base=plan.hyperparameters,
        seed=plan.seed,
        on_trial=on_trial,
    )


def train_model(
    data: Path,
    out: Path,
    plan: TrainingPlan | None = None,
    *,
    on_step: Callable[[str], None] = lambda _: None,
    on_trial: Callable[[int, float], None] = lambda _number, _best: None,
) -> TrainingResult:
    """Train a model on a file, judge it on later days and write everything to `out`.

    Args:
        data: Parquet or CSV file; it is held in memory as a whole.
        out: Folder to write to; made if missing, files in it are replaced.
        plan: Windows, seed and settings; None: the defaults.
        on_step: Called with each of `STEPS` when it begins.
        on_trial: Called by a search after each trial: how many are finished, best value so far.

    Raises:
        DataError: The file cannot be used, or a window lacks fraud or genuine transactions.
        ConfigurationError: Windows that do not fit the data, or a leak.
    """
    plan = plan or TrainingPlan()
    _make_folder(out)
    on_step("read")
    table, windows, contract = _load(data, plan)
    found = _search(table, windows, plan, (data, out), on_step, on_trial)
    hyperparameters = found.best if found else plan.hyperparameters
    on_step("replay")
    (fit, validation, test), duplicates = _window_rows(table, windows, contract, data)
    on_step("fit")
    learned, later = (fit.rows, fit.is_fraud), (validation.rows, validation.is_fraud)
    booster = fit_booster(learned, later, hyperparameters, plan.seed)
    on_step("evaluate")
    validation_scores = predict(booster, validation.rows)
    policy = policy_for(validation_scores, validation, plan.targets)
    costs = plan.targets.costs or CostMatrix()
    scores = predict(booster, test.rows)
    metrics = {
        **_describe_training(plan, windows, hyperparameters, booster),
        "feature_hash": contract.hash,
        "data": _describe(table, data, duplicates),
        "fit": {"transactions": len(fit.rows), "frauds": int(fit.is_fraud.sum())},
        "policy": json.loads(policy_to_json(policy, plan.targets)),
        "costs": asdict(costs),
        "trade_off": trade_off(validation_scores, validation, costs, policy),
        **({"search_trials": len(found.trials)} if found else {}),
        "validation": evaluate(
            validation_scores, validation.is_fraud, validation.customers, validation.days, policy
        ),
        "test": evaluate(scores, test.is_fraud, test.customers, test.days, policy),
    }
    on_step("write")
    booster.save_model(out / "model.json")
    (out / "contract.json").write_text(contract.to_json() + "\n", encoding="utf-8")
    (out / "policy.json").write_text(policy_to_json(policy, plan.targets) + "\n", encoding="utf-8")
    _write_scores(out / "scores.parquet", table, test, scores)
    _write_sample(out / "feature_sample.parquet", test.rows)
    write_report(out, metrics, scores, test.is_fraud)
    return TrainingResult(out, booster, contract, policy, windows, metrics)
