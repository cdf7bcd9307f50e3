"""Two versions side by side: what was measured of each, and what they decide on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from export.training import SAMPLE_FILE, sample_rows
from flagger.features import FeatureContract
from flagger.models import ModelVersion, load_version, read_metrics, version_folder
from flagger.policy import APPROVE
from flagger.recode import recode

__all__ = ["Comparison", "compare_versions"]

_TEST = ("transactions", "frauds", "roc_auc", "average_precision", "accuracy")
_FLAGS = ("flagged_share", "precision", "recall")


@dataclass(frozen=True)
class Comparison:
    """What differs between two versions.

    Attributes:
        names: The two versions.
        facts: What each says of itself, by name; measures are of its own test window.
        rows: Real feature rows that both scored; 0: none were kept.
        same_decisions: Share of them with the same decision.
        correlation: Pearson correlation of the scores; None: one has the same score everywhere.
        largest_difference: Of two scores of one row.
        flagged: How many each flags (review or decline).
        flagged_by_both: How many both flag.
    """

    names: tuple[str, str]
    facts: dict[str, tuple[str, str]]
    rows: int = 0
    same_decisions: float = 0.0
    correlation: float | None = None
    largest_difference: float = 0.0
    flagged: tuple[int, int] = (0, 0)
    flagged_by_both: int = 0


def compare_versions(repository: Path, first: str, second: str) -> Comparison:
    """Compare two versions of a repository.

    The rows are those that the second's training kept, else the first's; category codes are
    translated to each model's own vocabulary.

    Raises:
        ConfigurationError: No such version, or one is damaged.
    """
    models = load_version(repository, first), load_version(repository, second)
    sheets = [_facts(repository, model) for model in models]
    names = list(dict.fromkeys([*sheets[0], *sheets[1]]))
    facts = {name: (sheets[0].get(name, ""), sheets[1].get(name, "")) for name in names}
    for model in reversed(models):
        rows = sample_rows(
            version_folder(repository, model.version) / SAMPLE_FILE, model.contract.names
        )
        if rows is not None and len(rows):
            return _on_rows(repository, models, facts, rows, model.contract)
    return Comparison((first, second), facts)


def _on_rows(
    repository: Path,
    models: tuple[ModelVersion, ModelVersion],
    facts: dict[str, tuple[str, str]],
    rows: npt.NDArray[np.float32],
    contract: FeatureContract,
) -> Comparison:
    scores, decisions = [], []
    for model in models:
        booster = xgboost.Booster()
        booster.load_model(version_folder(repository, model.version) / "xgboost.json")
        own = recode(rows, contract, model.contract)
        scores.append(booster.inplace_predict(own, missing=np.nan))
        decisions.append(model.policy.decide(scores[-1]))
    flagged = [decided != APPROVE for decided in decisions]
    return Comparison(
        names=(models[0].version, models[1].version),
        facts=facts,
        rows=len(rows),
        same_decisions=float((decisions[0] == decisions[1]).mean()),
        correlation=_correlation(*scores),
        largest_difference=float(np.abs(scores[0] - scores[1]).max()),
        flagged=(int(flagged[0].sum()), int(flagged[1].sum())),
        flagged_by_both=int((flagged[0] & flagged[1]).sum()),
    )


def _correlation(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> float | None:
    if first.std() == 0.0 or second.std() == 0.0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def _facts(repository: Path, model: ModelVersion) -> dict[str, str]:
    metrics = read_metrics(repository, model.version)
    windows, test = metrics.get("windows", {}), metrics.get("test", {})
    facts = {
        "exported": str(model.manifest.get("created_at", "")),
        "git revision": str(model.manifest.get("git_revision") or ""),
        "trees": str(model.manifest.get("n_trees", "")),
        "policy": f"{model.policy.version}: {model.policy.review_threshold:.4f} / "
        f"{model.policy.decline_threshold:.4f}",
        **{name.replace("_", " "): str(day) for name, day in windows.items()},
        **{f"test {name}": _text(test[name]) for name in _TEST if name in test},
        **{f"flags {n}": _text(test["flags"][n]) for n in _FLAGS if n in test.get("flags", {})},
    }
    parameters = metrics.get("hyperparameters", {})
    return facts | {name: _text(value) for name, value in parameters.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else f"{value}"
