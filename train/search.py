"""Search of hyperparameters: trials judged on several periods inside the train window.

The test window is never looked at. Trials are kept in `search.db` in the output folder: a search
that was interrupted goes on, and one that was finished can be made longer. Each trial's sampler is
seeded by its number, so a search in two parts tries the same as one in one go.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pyarrow as pa
from sklearn.metrics import average_precision_score, roc_auc_score

from flagger.errors import ConfigurationError
from flagger.features import FeatureContract, catalogue_hash
from train.fit import Hyperparameters, Prepared, boost, predict, prepare
from train.prequential import PrequentialPlan, choose_periods
from train.rows import replay_windows, require_both_outcomes
from train.split import Windows
from train.vocabulary import build_vocabularies

__all__ = ["CAREFUL", "SearchPeriod", "SearchResult", "search", "search_periods"]

CAREFUL = {"max_depth": 5, "min_child_weight": 5.0, "reg_lambda": 5.0}
"""The second trial: the defaults with smaller trees of heavier leaves.

Meant for data with few weeks to learn from; docs/model.md compares the two.
"""
_PERIODS = 3
_RANDOM_TRIALS = 8
"""Before the sampler models what it has seen."""


@dataclass(frozen=True)
class SearchPeriod:
    """One period, ready for many fits.

    Attributes:
        windows: Its days.
        prepared: Rows to fit on and to stop by.
        rows: Rows to judge, float32 [n, F].
        is_fraud: Their outcomes, bool [n].
    """

    windows: Windows
    prepared: Prepared
    rows: npt.NDArray[np.float32]
    is_fraud: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        best: Hyperparameters with the highest mean average precision over the periods.
        trials: Number, parameters and measures of each finished trial, in order.
    """

    best: Hyperparameters
    trials: list[dict[str, Any]]


def search_periods(
    table: pa.Table, windows: Windows, label_delay_days: int, file: Path
) -> list[SearchPeriod]:
    """Return the periods inside the train window; a sixth of its days is judged by each.

    Raises:
        ConfigurationError: The train window is too short.
        DataError: A period lacks frauds or genuine transactions.
    """
    plan = PrequentialPlan(
        periods=_PERIODS,
        train_days=windows.train_days,
        test_days=max(1, windows.train_days // 6),
        label_delay_days=label_delay_days,
        labels_as_of=windows.test_from,  # the gap has made the whole train window mature
        test_to=windows.train_to,
    )
    times = table["event_time"].cast(pa.int64()).to_numpy()
    found = []
    for period in choose_periods(windows.train_from, windows.test_from, plan):
        masks = period.masks(times)
        contract = FeatureContract(build_vocabularies(table, masks["fit"]), label_delay_days)
        parts, _ = replay_windows(table, masks, contract)
        for name, part in parts.items():
            require_both_outcomes(f"search period's {name}", part.is_fraud, file)
        fit, validation, test = parts["fit"], parts["validation"], parts["test"]
        prepared = prepare(
            (fit.rows, fit.is_fraud),
            (validation.rows, validation.is_fraud),
        )
        found.append(SearchPeriod(period, prepared, test.rows, test.is_fraud))
    return found


def _suggest(trial: optuna.Trial, base: Hyperparameters) -> Hyperparameters:
    return replace(
        base,
        max_depth=trial.suggest_int("max_depth", 3, 9),
        learning_rate=trial.suggest_float("learning_rate", 0.02, 0.2, log=True),
        min_child_weight=trial.suggest_float("min_child_weight", 0.5, 30.0, log=True),
        subsample=trial.suggest_float("subsample", 0.5, 1.0),
        colsample_bytree=trial.suggest_float("colsample_bytree", 0.3, 1.0),
        reg_lambda=trial.suggest_float("reg_lambda", 0.1, 30.0, log=True),
        gamma=trial.suggest_float("gamma", 0.0, 3.0),
        monotone=trial.suggest_categorical("monotone", [False, True]),
    )


def _open_study(out: Path, identity: dict[str, Any]) -> optuna.Study:
    """Open or make the study; refuse one that searched something else."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{out / 'search.db'}",
        study_name="search",
        direction="maximize",
        load_if_exists=True,
    )
    found = study.user_attrs.get("identity")
    if found is None:
        study.set_user_attr("identity", identity)
    elif found != identity:
        raise ConfigurationError(
            f"{out / 'search.db'} holds a search over other data, days, features or another seed "
            f"({json.dumps(found)}; now {json.dumps(identity)}). Give another --out, or remove it."
        )
    return study


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))


def _run_trial(
    study: optuna.Study, periods: list[SearchPeriod], base: Hyperparameters, seed: int
) -> None:
    done = len(_finished(study))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.TPESampler(
            seed=seed + done, n_startup_trials=_RANDOM_TRIALS, multivariate=True
        )
    if done == 0:  # the defaults are the first trial: what is found must beat them
        searched = {n: v for n, v in asdict(base).items() if not n.endswith("_trees")}
        for known in (searched, searched | CAREFUL):
            study.enqueue_trial(known, skip_if_exists=True)
    trial = study.ask()
    hyperparameters = _suggest(trial, base)
    measures = []
    for period in periods:
        scores = predict(boost(period.prepared, hyperparameters, seed), period.rows)
        measures.append(
            (
                float(average_precision_score(period.is_fraud, scores)),
                float(roc_auc_score(period.is_fraud, scores)),
            )
        )
    trial.set_user_attr("average_precision", [precision for precision, _ in measures])
    trial.set_user_attr("roc_auc", [auc for _, auc in measures])
    study.tell(trial, float(np.mean([precision for precision, _ in measures])))


def search(
    periods: list[SearchPeriod],
    trials: int,
    out: Path,
    *,
    base: Hyperparameters | None = None,
    seed: int = 0,
    on_trial: Callable[[int, float], None] = lambda _number, _best: None,
) -> SearchResult:
    """Search until `trials` are finished, those of earlier runs in `out` included.

    The first trial is `base`, the second `base` with `CAREFUL`; the highest mean average precision
    wins.

    Args:
        periods: What is judged on, from `search_periods`.
        trials: How many, at least 1.
        out: Folder for `search.db` and `search.json`.
        base: Settings that are not searched, and the first trial; None: the defaults.
        seed: Seed of the sampler and of the trees.
        on_trial: Called after each trial with how many are finished and the best value.

    Raises:
        ConfigurationError: `search.db` holds a search over something else.
    """
    base = base or Hyperparameters()
    identity = {
        "periods": [period.windows.to_dict() for period in periods],
        "rows": [_fingerprint(period) for period in periods],
        "features": catalogue_hash(),
        "base": asdict(base),
        "seed": seed,
    }
    study = _open_study(out, identity)
    on_trial(len(_finished(study)), study.best_value if _finished(study) else 0.0)
    while len(_finished(study)) < trials:
        _run_trial(study, periods, base, seed)
        on_trial(len(_finished(study)), study.best_value)
    rows = [
        {"trial": i, "value": trial.value, **trial.user_attrs, "parameters": trial.params}
        for i, trial in enumerate(_finished(study))
    ]
    best = replace(base, **study.best_params)
    content = {"best": asdict(best), "identity": identity, "trials": rows}
    text = json.dumps(content, indent=2, allow_nan=False)
    (out / "search.json").write_text(text + "\n", encoding="utf-8")
    return SearchResult(best, rows)


def _fingerprint(period: SearchPeriod) -> str:
    """Return a few digits that change with the judged rows or outcomes."""
    digest = hashlib.sha256(np.ascontiguousarray(period.rows).tobytes())
    digest.update(period.is_fraud.tobytes())
    return digest.hexdigest()[:12]
