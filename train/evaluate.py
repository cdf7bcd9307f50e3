"""What `flagger evaluate` runs: models and baselines over several periods, measured alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flagger.errors import ConfigurationError, DataError
from flagger.features import FEATURE_NAMES, FeatureContract
from flagger.state.records import DAY_MS
from train.baselines import BASELINES
from train.fit import Hyperparameters, fit_booster, predict, shap_importance
from train.metrics import calibration_table, known_compromised
from train.money import CostMatrix
from train.period_measures import JudgedPeriod, measure, reviews_saved, summarise, summarise_saved
from train.prequential import PrequentialPlan, choose_periods
from train.rows import WindowRows, replay_windows, require_both_outcomes
from train.segments import lift_table, segment_tables
from train.sources import ColumnMap, read_sorted
from train.split import Windows, day_of, start_of_day_ms
from train.threshold import PolicyTargets
from train.vocabulary import build_vocabularies

__all__ = ["TREES", "Evaluation", "EvaluationPlan", "evaluate_file", "load_history", "load_period"]

TREES = "gradient-boosted trees"
"""Name of our model among the baselines."""
_SHAP_ROWS = 4_000


@dataclass(frozen=True)
class EvaluationPlan:
    """What to judge and how.

    Attributes:
        columns: How the file's layout differs.
        prequential: Number and length of the periods.
        train_from: First day that may be learned from; None: a label delay after the file's first.
        known_days: Cards are known as compromised by frauds of the last so many days of the train
            window, and of later days; None: of the whole train window.
        baselines: Judge rules, logistic regression and random forest, too.
        targets: What the thresholds are to achieve; `alert_budget` is also that of the recall.
        costs: For money saved.
        hyperparameters: Settings of the trees.
        seed: Seed of the models.
    """

    columns: ColumnMap = field(default_factory=ColumnMap)
    prequential: PrequentialPlan = field(default_factory=PrequentialPlan)
    train_from: date | None = None
    known_days: int | None = None
    baselines: bool = True
    targets: PolicyTargets = field(default_factory=PolicyTargets)
    costs: CostMatrix = field(default_factory=CostMatrix)
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    seed: int = 0


@dataclass(frozen=True)
class History:
    """A file of transactions and the periods that are judged.

    Attributes:
        file: Where they come from, for errors.
        table: Transactions in `SCHEMA`, ordered by time.
        periods: From the earliest to the latest.
        maturity: Which days were left out because their labels are not mature, for the report.
    """

    file: Path
    table: pa.Table
    periods: tuple[Windows, ...]
    maturity: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What was found.

    Attributes:
        measures: The content of evaluation.json.
        is_fraud: Outcomes of all periods' test windows, bool [n].
        scores: Scores by model, float32 [n].
        places: Places of these transactions in the history's table, int64 [n].
        history: What was judged.
    """

    measures: dict[str, Any]
    is_fraud: npt.NDArray[np.bool_]
    scores: dict[str, npt.NDArray[np.float32]]
    places: npt.NDArray[np.int64]
    history: History


def load_history(data: Path, plan: EvaluationPlan) -> History:
    """Read the file and lay out the periods on its days with mature labels.

    Raises:
        DataError: The file cannot be used.
        ConfigurationError: The days are too few, or do not reach back to `train_from`.
    """
    table = read_sorted(data, plan.columns)
    labelled = table["is_fraud"].is_valid().to_numpy()
    if not labelled.any():
        raise DataError(
            file=str(data),
            column="is_fraud",
            problem="no transaction has an outcome",
            remedy="Judging needs the column is_fraud; name it with --columns map.toml",
        )
    times = table["event_time"].cast(pa.int64()).to_numpy()
    first, last = day_of(int(times[0])), day_of(int(times[-1]))
    train_from = plan.train_from or first + timedelta(days=plan.prequential.label_delay_days)
    if train_from < first:
        raise ConfigurationError(
            f"{data} begins on {first}: nothing can be learned from {train_from} on (--train-from)."
        )
    periods = choose_periods(train_from, last, plan.prequential)
    mature_to = plan.prequential.last_mature_day(last)
    immature = times >= start_of_day_ms(mature_to + timedelta(days=1))
    maturity = {
        "labels_as_of": (plan.prequential.labels_as_of or last).isoformat(),
        "mature_to": mature_to.isoformat(),
        "immature_days": (last - mature_to).days,
        "immature_transactions": int(immature.sum()),
        "unlabelled_transactions": int((~labelled).sum()),
    }
    return History(data, table, periods, maturity)


def load_period(history: History, windows: Windows, label_delay_days: int) -> dict[str, WindowRows]:
    """Return the rows of `fit`, `validation` and `test`; codes are those known from `fit`."""
    table = history.table
    masks = windows.masks(table["event_time"].cast(pa.int64()).to_numpy())
    contract = FeatureContract(build_vocabularies(table, masks["fit"]), label_delay_days)
    parts, _ = replay_windows(table, masks, contract)
    for name, part in parts.items():
        require_both_outcomes(f"{name} (from {windows.train_from})", part.is_fraud, history.file)
    return parts


def _known(table: pa.Table, windows: Windows, test: WindowRows, plan: EvaluationPlan) -> Any:
    """Return which test transactions are of customers known as compromised."""
    since = windows.train_from
    if plan.known_days is not None:
        since = max(since, windows.train_to - timedelta(days=plan.known_days - 1))
    times = table["event_time"].cast(pa.int64()).to_numpy()
    frauds = pc.fill_null(table["is_fraud"], False).to_numpy()
    place = np.flatnonzero(frauds & (times >= start_of_day_ms(since)))
    customers = table["customer_id"].take(pa.array(place)).to_numpy()
    past = (customers, times[place] // DAY_MS)
    return known_compromised(test.customers, test.days, past, plan.prequential.label_delay_days)


def _judge(
    history: History,
    windows: Windows,
    plan: EvaluationPlan,
    on_model: Callable[[str], None],
) -> tuple[JudgedPeriod, Any]:
    """Fit all models of a period; return their scores and the booster."""
    parts = load_period(history, windows, plan.prequential.label_delay_days)
    fit, validation, test = parts["fit"], parts["validation"], parts["test"]
    on_model(TREES)
    booster = fit_booster(
        (fit.rows, fit.is_fraud),
        (validation.rows, validation.is_fraud),
        plan.hyperparameters,
        plan.seed,
    )
    on_validation = {TREES: predict(booster, validation.rows)}
    on_test = {TREES: predict(booster, test.rows)}
    for name, learn in BASELINES.items():
        if plan.baselines or name == "rules":  # rules are cheap, and reviews are compared to them
            on_model(name)
            scorer = learn(fit.rows, fit.is_fraud, plan.seed)
            on_validation[name], on_test[name] = scorer(validation.rows), scorer(test.rows)
    known = _known(history.table, windows, test, plan)
    judged = JudgedPeriod(windows, len(fit.rows), validation, test, known, on_validation, on_test)
    return judged, booster


def _describe_period(judged: JudgedPeriod, models: dict[str, dict[str, float]]) -> dict[str, Any]:
    test = judged.test
    return {
        **judged.windows.to_dict(),
        "fit_transactions": judged.fit_rows,
        "transactions": len(test.rows),
        "frauds": int(test.is_fraud.sum()),
        "known_compromised_transactions": int(judged.known.sum()),
        "models": models,
    }


def _importance(booster: Any, rows: npt.NDArray[np.float32]) -> list[dict[str, Any]]:
    chosen = np.linspace(0, len(rows) - 1, min(_SHAP_ROWS, len(rows)), dtype=np.intp)
    sizes, directions = shap_importance(booster, rows[chosen])
    return [
        {
            "feature": FEATURE_NAMES[i],
            "mean_absolute_contribution": float(sizes[i]),
            "direction": float(directions[i]),
        }
        for i in np.argsort(-sizes, kind="stable")
    ]


def evaluate_file(
    data: Path,
    plan: EvaluationPlan | None = None,
    *,
    on_progress: Callable[[str, float], None] = lambda _text, _done: None,
) -> Evaluation:
    """Judge the trees and the baselines over several periods of a file.

    Args:
        data: Parquet or CSV file; it is held in memory as a whole.
        plan: Periods, models and costs; None: the defaults.
        on_progress: Called with what begins, and the share of the work that is done.

    Raises:
        DataError: The file cannot be used, or a window lacks frauds or genuine transactions.
        ConfigurationError: The days are too few for the periods.
    """
    plan = plan or EvaluationPlan()
    on_progress("reading the file", 0.0)
    history = load_history(data, plan)
    count = len(history.periods)
    judged: list[JudgedPeriod] = []
    booster = None
    for number, windows in enumerate(history.periods):
        label, done = f"period {number + 1} of {count}", number / count
        on_progress(label, done)

        def show(model: str, label: str = label, done: float = done) -> None:
            on_progress(f"{label}: {model}", done)

        period, booster = _judge(history, windows, plan, show)
        judged.append(period)
    on_progress("measuring", 1.0)
    return _collect(history, judged, plan, booster)


def _collect(
    history: History, judged: list[JudgedPeriod], plan: EvaluationPlan, booster: Any
) -> Evaluation:
    """Measure each period and put the test windows together."""
    names = list(judged[0].test_scores)
    measures = [
        {name: measure(period, name, plan.targets, plan.costs) for name in names}
        for period in judged
    ]
    is_fraud = np.concatenate([period.test.is_fraud for period in judged])
    scores = {
        name: np.concatenate([period.test_scores[name] for period in judged]) for name in names
    }
    flagged = np.concatenate(
        [p.policy(TREES, plan.targets).decide(p.test_scores[TREES]) != 0 for p in judged]
    )
    place = np.concatenate([period.test.place for period in judged])
    found = {
        "data": history.file.name,
        "transactions": history.table.num_rows,
        "maturity": history.maturity,
        "label_delay_days": plan.prequential.label_delay_days,
        "known_days": plan.known_days,
        "seed": plan.seed,
        "hyperparameters": asdict(plan.hyperparameters),
        "costs": asdict(plan.costs),
        "targets": plan.targets.to_dict(),
        "periods": [_describe_period(p, m) for p, m in zip(judged, measures, strict=True)],
        "summary": {name: summarise([period[name] for period in measures]) for name in names},
        "reviews_saved": summarise_saved([reviews_saved(period, TREES) for period in judged]),
        "segments": segment_tables(history.table, place, scores[TREES], is_fraud, flagged),
        "lift": {name: lift_table(scores[name], is_fraud) for name in names},
        "importance": _importance(booster, judged[-1].test.rows),
        "reliability": {
            name: calibration_table(scores[name], is_fraud) for name in names if name != "rules"
        },
    }
    return Evaluation(found, is_fraud, scores, place, history)
