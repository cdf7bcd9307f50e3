"""The report of `flagger evaluate`: evaluation.json and a self-contained report.html."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve, roc_curve

from train.alert_times import BACKLOG_S, AlertTimes
from train.evaluate import TREES, Evaluation
from train.page import embedded, new_figure, png, render
from train.period_measures import MEASURES

__all__ = ["Extras", "write_evaluation"]

_FEATURES_SHOWN = 20
_FLOOR = 1e-5
"""Bins without fraud are drawn here on logarithmic axes."""


def _draw_roc(axes: Axes, evaluation: Evaluation) -> None:
    for name, scores in evaluation.scores.items():
        false_positive_rate, recall, _ = roc_curve(evaluation.is_fraud, scores)
        axes.plot(np.maximum(false_positive_rate, 1e-5), recall, label=name)
    axes.set(
        xlabel="share of genuine transactions flagged", ylabel="share of frauds flagged",
        xscale="log",
    )  # fmt: skip
    axes.legend()


def _draw_precision_recall(axes: Axes, evaluation: Evaluation) -> None:
    for name, scores in evaluation.scores.items():
        precision, recall, _ = precision_recall_curve(evaluation.is_fraud, scores)
        axes.step(recall, precision, where="post", label=name)
    axes.set(xlabel="recall", ylabel="precision", ylim=(0.0, 1.02))
    axes.legend()


def _draw_gain(axes: Axes, evaluation: Evaluation) -> None:
    for name, scores in evaluation.scores.items():
        hits = np.cumsum(evaluation.is_fraud[np.argsort(-scores, kind="stable")])
        points = np.unique(np.geomspace(1, len(hits), 300).astype(np.intp)) - 1
        axes.plot((points + 1) / len(hits), hits[points] / hits[-1], label=name)
    axes.set(xlabel="share of transactions looked at", ylabel="share of frauds", xscale="log")
    axes.legend()


def _draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    axes.plot([_FLOOR, 1.0], [_FLOOR, 1.0], color="grey", linestyle=":")
    for name, bins in evaluation.measures["reliability"].items():
        expected = [max(part["mean_score"], _FLOOR) for part in bins]
        found = [max(part["fraud_share"], _FLOOR) for part in bins]
        axes.plot(expected, found, marker="o", linestyle="none", label=name)
    axes.set(xlabel="mean score", ylabel="share of fraud", xscale="log", yscale="log")
    axes.legend()


def _draw_importance(axes: Axes, evaluation: Evaluation) -> None:
    shown = evaluation.measures["importance"][:_FEATURES_SHOWN][::-1]
    colours = ["tab:red" if entry["direction"] >= 0 else "tab:blue" for entry in shown]
    sizes = [entry["mean_absolute_contribution"] for entry in shown]
    axes.barh([entry["feature"] for entry in shown], sizes, color=colours)
    axes.set(xlabel="mean |contribution|, log-odds\nred: the score rises with the value")


def _draw_periods(axes: Axes, evaluation: Evaluation) -> None:
    periods = evaluation.measures["periods"]
    days = [period["test_from"] for period in periods]
    for name in evaluation.scores:
        values = [period["models"][name]["average_precision"] for period in periods]
        axes.plot(days, values, marker="o", label=name)
    axes.set(xlabel="first day judged", ylabel="average precision", ylim=(0.0, 1.02))
    axes.legend()


_PLOTS: dict[str, Callable[[Axes, Evaluation], None]] = {
    "ROC": _draw_roc,
    "Precision and recall": _draw_precision_recall,
    "Gain": _draw_gain,
    "Reliability": _draw_reliability,
    "Importance (SHAP, last period)": _draw_importance,
    "Average precision by period": _draw_periods,
}


def _picture(draw: Callable[[Axes, Evaluation], None], evaluation: Evaluation) -> str:
    figure = new_figure(6.4, 4.8)
    draw(figure.add_subplot(), evaluation)
    return embedded(png(figure, dpi=130))


@dataclass(frozen=True)
class Extras:
    """Sections that not every report has; None: left out.

    Attributes:
        ablation: What the groups of features are worth, from `train.ablation`.
        times: Time to the alert, from `train.alert_times`.
        ceiling: The best area that is possible, by period, from `train.ceiling`.
    """

    ablation: dict[str, Any] | None = None
    times: AlertTimes | None = None
    ceiling: list[dict[str, Any]] | None = None


def write_evaluation(out: Path, evaluation: Evaluation, extras: Extras | None = None) -> None:
    """Write evaluation.json and report.html.

    Args:
        out: Folder; must exist.
        evaluation: What was measured.
        extras: More sections; None: none.
    """
    extras = extras or Extras()
    further = {
        "ablation": extras.ablation,
        "alert_times": None if extras.times is None else asdict(extras.times),
        "handbook_ceiling": extras.ceiling,
    }
    content = evaluation.measures | {name: part for name, part in further.items() if part}
    text = json.dumps(content, indent=2, allow_nan=False)
    (out / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    page = render(
        Path(__file__).with_name("evaluate_report.html"),
        m=evaluation.measures,
        trees=TREES,
        measures=MEASURES,
        plots={title: _picture(draw, evaluation) for title, draw in _PLOTS.items()},
        ablation=extras.ablation,
        times=extras.times,
        ceiling=extras.ceiling,
        backlog_s=BACKLOG_S,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
