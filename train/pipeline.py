"""From a file of transactions to a trained and judged model: what `flagger train` runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flagger.errors import ConfigurationError, DataError
from flagger.features import FeatureContract
from train.fit import fit_booster, predict
from train.judge import (
    NAMED_COLUMNS,
    Fitted,
    Judged,
    TrainingPlan,
    TrainingResult,
    judge_and_write,
    sample_places,
)
from train.rows import WindowRows, replay_windows, require_both_outcomes
from train.search import SearchResult, search, search_periods
from train.sources import read_sorted
from train.split import Windows, choose_windows
from train.vocabulary import build_vocabularies

__all__ = ["STEPS", "TrainingPlan", "TrainingResult", "fix_windows", "make_folder", "train_model"]

STEPS = ("read", "replay", "fit", "evaluate", "write")
"""What `train_model` does, in order; a search comes before `replay` as `search`."""


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


def fix_windows(data: Path, plan: TrainingPlan, times: tuple[int, int], labelled: int) -> Windows:
    """Return the windows of a plan for some data.

    Args:
        data: Where the data come from, for the error.
        plan: Windows asked for, label delay.
        times: Time of the first and of the last transaction, epoch milliseconds.
        labelled: Transactions with an outcome.

    Raises:
        DataError: No outcomes.
        ConfigurationError: Windows that do not fit the data, or a leak.
    """
    if labelled == 0:
        raise DataError(
            file=str(data),
            column="is_fraud",
            problem="no transaction has an outcome",
            remedy="Training needs the column is_fraud; name it with --columns map.toml",
        )
    windows = choose_windows(
        *times,
        plan.label_delay_days,
        train_from=plan.train_from,
        train_to=plan.train_to,
        test_from=plan.test_from,
        test_to=plan.test_to,
    )
    if not plan.allow_leakage:
        windows.require_gap(plan.label_delay_days)
    return windows


def _load(data: Path, plan: TrainingPlan) -> tuple[pa.Table, Windows, FeatureContract]:
    """Read the file, fix the windows, and build the vocabularies from the rows to fit on."""
    table = read_sorted(data, plan.columns)
    times = table["event_time"].cast(pa.int64()).to_numpy()
    labelled = table.num_rows - table["is_fraud"].null_count
    windows = fix_windows(data, plan, (int(times[0]), int(times[-1])), labelled)
    vocabularies = build_vocabularies(table, windows.masks(times)["fit"])
    return table, windows, FeatureContract(vocabularies, plan.label_delay_days)


def make_folder(out: Path) -> None:
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
    make_folder(out)
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
    facts = {
        "data": _describe(table, data, duplicates),
        "fit": {"transactions": len(fit.rows), "frauds": int(fit.is_fraud.sum())},
        **({"search_trials": len(found.trials)} if found else {}),
    }
    fitted = Fitted(booster, contract, windows, hyperparameters, facts)
    named = table.select(list(NAMED_COLUMNS))
    parts = [
        Judged(predict(booster, part.rows), part.amounts, named.take(part.place))
        for part in (validation, test)
    ]
    sample = test.rows[sample_places(len(test.rows))]
    return judge_and_write(out, plan, fitted, (parts[0], parts[1]), sample, on_step=on_step)
