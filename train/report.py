"""The evaluation report: metrics.json, plots and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

__all__ = ["PLOTS", "model_card", "write_report"]

PLOTS = ("roc", "precision_recall", "scores", "calibration", "features", "trade_off")
"""Names of the pictures in plots/."""
_FEATURES_SHOWN = 20


def _draw_roc(axes: Axes, scores: npt.NDArray[np.float32], is_fraud: npt.NDArray[np.bool_]) -> None:
    false_positive_rate, recall, _ = roc_curve(is_fraud, scores)
    axes.plot(false_positive_rate, recall)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set(xlabel="share of genuine transactions flagged", ylabel="share of frauds flagged")


def _draw_precision_recall(
    axes: Axes, scores: npt.NDArray[np.float32], is_fraud: npt.NDArray[np.bool_]
) -> None:
    precision, recall, _ = precision_recall_curve(is_fraud, scores)
    axes.step(recall, precision, where="post")
    axes.axhline(float(is_fraud.mean()), color="grey", linestyle=":")
    axes.set(xlabel="recall", ylabel="precision", ylim=(0.0, 1.02))


def _draw_scores(
    axes: Axes,
    scores: npt.NDArray[np.float32],
    is_fraud: npt.NDArray[np.bool_],
    policy: dict[str, Any],
) -> None:
    bins = np.linspace(0.0, 1.0, 51)
    for outcome, label in ((~is_fraud, "genuine"), (is_fraud, "fraud")):
        axes.hist(scores[outcome], bins=bins.tolist(), alpha=0.6, label=label)
    for name, style in (("review_threshold", "--"), ("decline_threshold", "-")):
        axes.axvline(policy[name], color="black", linestyle=style, label=name.replace("_", " "))
    axes.set(xlabel="score", ylabel="transactions", yscale="log")
    axes.legend()


def _draw_calibration(axes: Axes, table: list[dict[str, float]]) -> None:
    floor = 1e-5  # so that bins without fraud are on the logarithmic axes, too
    expected = [max(part["mean_score"], floor) for part in table]
    found = [max(part["fraud_share"], floor) for part in table]
    axes.plot([floor, 1.0], [floor, 1.0], color="grey", linestyle=":")
    axes.plot(expected, found, marker="o", linestyle="none")
    axes.set(xlabel="mean score", ylabel="share of fraud", xscale="log", yscale="log")


def _draw_features(axes: Axes, gains: dict[str, float]) -> None:
    names = list(gains)[:_FEATURES_SHOWN][::-1]
    axes.barh(names, [gains[name] for name in names])
    axes.set(xlabel="share of gain")


def _draw_trade_off(axes: Axes, metrics: dict[str, Any]) -> None:
    points = metrics["trade_off"]
    flags = [point["flags_per_day"] for point in points]
    for name in ("recall", "precision"):
        axes.plot(flags, [point[name] for point in points], label=name)
    axes.set(xlabel="transactions flagged a day (validation)", ylabel="share", xscale="log")
    axes.set_ylim(0.0, 1.02)
    money = axes.twinx()
    saved = [point["money_saved_per_day"] for point in points]
    money.plot(flags, saved, color="green", linestyle="--", label="money saved a day (right)")
    money.set_ylabel("money saved a day")
    chosen = [p for p in points if p["review_threshold"] >= metrics["policy"]["review_threshold"]]
    if chosen:
        axes.axvline(chosen[-1]["flags_per_day"], color="black", linestyle=":", label="chosen")
    lines = [*axes.get_lines(), *money.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="lower right")


def _data_section(metrics: dict[str, Any]) -> str:
    windows, data, test = metrics["windows"], metrics["data"], metrics["test"]
    leak = (
        "**The gap is shorter than the label delay: the measures are too good.** "
        if metrics["leakage"]
        else ""
    )
    return f"""## Data

`{data["file"]}`: {data["transactions"]:,} transactions from {data["first_event_time"]} to
{data["last_event_time"]}, {data["frauds"]:,} of them fraud, {data["unlabelled"]:,} without an
outcome, {data["duplicates"]:,} repeated.

| window | from | to | transactions | frauds |
|---|---|---|---|---|
| fit | {windows["train_from"]} | before {windows["validation_from"]} \
| {metrics["fit"]["transactions"]:,} | {metrics["fit"]["frauds"]:,} |
| validation | {windows["validation_from"]} | {windows["train_to"]} \
| {metrics["validation"]["transactions"]:,} | {metrics["validation"]["frauds"]:,} |
| test | {windows["test_from"]} | {windows["test_to"]} \
| {test["transactions"]:,} | {test["frauds"]:,} |

Days are whole days in UTC. Between train and test lie {metrics["gap_days"]} days; fraud is known
{metrics["label_delay_days"]} days late. {leak}Number of trees and thresholds were chosen on the
validation; the test window was used for nothing but the figures below.
"""


def _policy_words(targets: dict[str, Any]) -> str:
    if "costs" in targets:
        return "The thresholds are those that saved most money on the validation."
    budget = (
        f"{targets['reviews_per_day']:g} transactions a day"
        if "reviews_per_day" in targets
        else f"{targets['alert_budget']:.2%} of the transactions"
    )
    return (
        f"On the validation the review threshold flags at most {budget}, and at least "
        f"{targets['decline_precision']:.0%} of the declined ones were fraud."
    )


def _measures_section(metrics: dict[str, Any]) -> str:
    test, policy = metrics["test"], metrics["policy"]
    flags, declines = test["flags"], test["declines"]
    return f"""## Measures on the test window

| measure | value |
|---|---|
| ROC AUC | {test["roc_auc"]:.4f} |
| average precision | {test["average_precision"]:.4f} |
| recall at 0.1 / 0.5 / 1 % false positives | {test["recall_at_fpr"]["0.001"]:.3f} / \
{test["recall_at_fpr"]["0.005"]:.3f} / {test["recall_at_fpr"]["0.01"]:.3f} |
| card precision at {test["card_precision"]["k"]} a day, detected cards removed | \
{test["card_precision"]["detected_removed"]:.3f} |
| the same, all cards | {test["card_precision"]["all_customers"]:.3f} |
| Brier score / log loss | {test["brier"]:.5f} / {test["log_loss"]:.5f} |
| calibration error | {test["calibration_error"]:.5f} |
| accuracy of the flags | {test["accuracy"]:.4f} |

## Policy

| decision | threshold | flagged | precision | recall | F1 |
|---|---|---|---|---|---|
| review or decline | {policy["review_threshold"]:.4f} | {flags["flagged_share"]:.2%} \
| {flags["precision"]:.3f} | {flags["recall"]:.3f} | {flags["f1"]:.3f} |
| decline | {policy["decline_threshold"]:.4f} | {declines["flagged_share"]:.2%} \
| {declines["precision"]:.3f} | {declines["recall"]:.3f} | {declines["f1"]:.3f} |

{_policy_words(policy["targets"])} `plots/trade_off.png` shows what other thresholds would do, with
{metrics["costs"]["review_cost"]:g} for a review and {metrics["costs"]["friction_cost"]:g} for a
genuine transaction declined.
"""


_LIMITS = """## Limits

The scores are calibrated to the fraud share of the train window; where that changes, the
thresholds must be chosen again. A customer without history has few features. Frauds that nobody
reported count as genuine. Customers are not told apart by who they are; check the outcome for
groups of customers before declining payments by it.
"""


def model_card(metrics: dict[str, Any]) -> str:
    """Return the model card, Markdown: what the model is, how good, and what it is not for."""
    head = f"""# Model card

Scores payments with the probability of fraud. XGBoost {metrics["versions"]["xgboost"]},
{metrics["trees"]} trees, feature contract `{metrics["feature_hash"]}`, seed {metrics["seed"]}.
"""
    gains = list(metrics["feature_gain"].items())[:10]
    features = "\n".join(
        ["## Features by gain", "", "| feature | share |", "|---|---|"]
        + [f"| {name} | {gain:.1%} |" for name, gain in gains]
    )
    sections = (head, _data_section(metrics), _measures_section(metrics), features + "\n", _LIMITS)
    return "\n".join(sections)


def write_report(
    directory: Path,
    metrics: dict[str, Any],
    scores: npt.NDArray[np.float32],
    is_fraud: npt.NDArray[np.bool_],
) -> None:
    """Write metrics.json, model_card.md and plots/*.png.

    Args:
        directory: Where to; must exist.
        metrics: All of metrics.json.
        scores: Scores of the test window, float32 [n].
        is_fraud: Its outcomes, bool [n].
    """
    text = json.dumps(metrics, indent=2, allow_nan=False)
    (directory / "metrics.json").write_text(text + "\n", encoding="utf-8")
    (directory / "model_card.md").write_text(model_card(metrics), encoding="utf-8")
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    draw = {
        "roc": lambda axes: _draw_roc(axes, scores, is_fraud),
        "precision_recall": lambda axes: _draw_precision_recall(axes, scores, is_fraud),
        "scores": lambda axes: _draw_scores(axes, scores, is_fraud, metrics["policy"]),
        "calibration": lambda axes: _draw_calibration(axes, metrics["test"]["calibration"]),
        "features": lambda axes: _draw_features(axes, metrics["feature_gain"]),
        "trade_off": lambda axes: _draw_trade_off(axes, metrics),
    }
    for name in PLOTS:
        # A figure of our own, unknown to pyplot: nothing to close, no display needed.
        figure = Figure(figsize=(8, 6), layout="constrained")
        FigureCanvasAgg(figure)
        draw[name](figure.add_subplot())
        figure.savefig(plots / f"{name}.png", dpi=110)
