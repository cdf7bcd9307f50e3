"""Small models on random rows with the real columns: export does not depend on `train`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xgboost

from flagger.features import CATEGORY_FIELDS, FEATURE_NAMES, FeatureContract
from flagger.training_files import bind_files

VOCABULARY = ("first", "second", "third", "fourth", "fifth")
"""Codes 0 to 5, as `random_rows` has them."""
N_FEATURES = len(FEATURE_NAMES)
TrainBooster = Callable[..., Any]
WriteTraining = Callable[..., Path]


def random_rows(n: int, seed: int) -> npt.NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows: npt.NDArray[np.float32] = random.normal(size=(n, N_FEATURES)).astype(np.float32)
    rows[random.random(rows.shape) < 0.1] = np.nan
    for column, name in enumerate(FEATURE_NAMES):
        if name.endswith("code"):
            rows[:, column] = random.integers(0, 6, n)
    return rows


def labels_of(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    noise = np.random.default_rng(len(rows)).normal(size=len(rows))
    codes = np.nan_to_num(rows[:, FEATURE_NAMES.index("channel_code")])
    is_fraud: npt.NDArray[np.bool_] = np.nansum(rows[:, :4], axis=1) + 0.4 * codes + noise > 2.5
    return is_fraud.astype(np.float32)


@pytest.fixture(scope="session")
def train_booster() -> TrainBooster:
    """Train: `train_booster(rounds=40, early_stopping=False, names=..., **xgboost_parameters)`."""

    def train(
        rounds: int = 40,
        early_stopping: bool = False,
        names: list[str] | None = None,
        data: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> Any:
        rows = random_rows(4_000, seed=1)
        if early_stopping:
            parameters = {"eta": 0.9} | parameters
        matrix = xgboost.DMatrix(
            rows, labels_of(rows), feature_names=names or list(FEATURE_NAMES), **(data or {})
        )
        held_out = random_rows(1_000, seed=2)
        watched = xgboost.DMatrix(
            held_out, labels_of(held_out), feature_names=names or list(FEATURE_NAMES)
        )
        return xgboost.train(
            {"objective": "binary:logistic", "nthread": 1, "seed": 3} | parameters,
            matrix,
            rounds,
            evals=[(watched, "held_out")] if early_stopping else [],
            early_stopping_rounds=12 if early_stopping else None,
            verbose_eval=False,
        )

    return train


@pytest.fixture(scope="session")
def booster(train_booster: TrainBooster) -> Any:
    return train_booster()


@pytest.fixture(scope="session")
def early_stopped(train_booster: TrainBooster) -> Any:
    booster = train_booster(rounds=200, early_stopping=True)
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    return booster


METRICS = {
    "windows": {
        "train_from": "2026-01-01",
        "validation_from": "2026-01-20",
        "train_to": "2026-01-25",
        "test_from": "2026-02-02",
        "test_to": "2026-02-08",
    },
    "test": {"pr_auc": 0.5},
}


@pytest.fixture(scope="session")
def write_training() -> WriteTraining:
    """Write what `flagger train` leaves: `write_training(folder, booster, policy=...)`."""

    def write(folder: Path, booster: Any, policy: dict[str, Any] | None = None) -> Path:
        folder.mkdir(parents=True)
        booster.save_model(folder / "model.json")
        contract = FeatureContract(dict.fromkeys(CATEGORY_FIELDS, VOCABULARY))
        thresholds = {"policy_version": "p1", "review_threshold": 0.5, "decline_threshold": 0.9}
        (folder / "contract.json").write_text(contract.to_json())
        (folder / "policy.json").write_text(json.dumps(policy or thresholds))
        (folder / "metrics.json").write_text(json.dumps(METRICS))
        bind_files(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def training_dir(
    tmp_path_factory: pytest.TempPathFactory, booster: Any, write_training: WriteTraining
) -> Path:
    return write_training(tmp_path_factory.mktemp("training") / "out", booster)
