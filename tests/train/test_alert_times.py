"""Time to the alert in the report of `flagger evaluate`: from results of `flagger bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagger.errors import DataError
from loadtest.bench_result import BenchResult
from train.alert_times import read_alert_times
from train.evaluate import TREES, Evaluation
from train.evaluate_report import Extras, write_evaluation

RESULTS = Path(__file__).parents[2] / "loadtest" / "results"


def write_results(folder: Path, *, rival_p50_ms: float, rival_per_s: float = 200.0) -> None:
    stream = BenchResult("latency-2000", {"rate_per_s": 2_000.0})
    rival = BenchResult("rival-per-message", {"rate_per_s": 20.0})
    for run in (1.0, 0.0, 2.0):
        stream.add("event to decision p50", 30.0 + run, "ms")
        stream.add("event to decision p99", 60.0 + run, "ms")
        for name, p50_ms in (("rival", rival_p50_ms), ("stream", 14.0)):
            rival.add(f"{name}, event to decision p50 at 20/s", p50_ms, "ms")
            rival.add(f"{name}, event to decision p99 at 20/s", 2 * p50_ms, "ms")
        rival.add("rival", rival_per_s, "tx/s")
        rival.add("stream", 100_000.0, "tx/s")
    stream.write(folder)
    rival.write(folder)


def test_figures_are_the_medians_of_the_runs(tmp_path: Path) -> None:
    write_results(tmp_path, rival_p50_ms=10.0)
    times = read_alert_times(tmp_path)
    rows = [(row.scenario, row.rate_per_s, row.p50_ms, row.p99_ms) for row in times.rows]
    assert rows == [
        ("latency-2000", 2_000.0, 31.0, 61.0),
        ("rival-per-message", 20.0, 14.0, 28.0),
        ("rival-per-message", 20.0, 10.0, 20.0),
    ]
    assert times.rival_minus_stream_ms == -4.0
    assert times.backlog is not None
    # 120,000 payments in a minute, 200 decided a second: the last one is decided after 600 s.
    assert times.backlog.wait_s == pytest.approx(600.0 - 60.0)
    assert [source.machine is None for source in times.sources] == [False, True, False]


def test_a_rival_that_holds_the_rate_has_no_queue(tmp_path: Path) -> None:
    write_results(tmp_path, rival_p50_ms=10.0, rival_per_s=2_500.0)
    backlog = read_alert_times(tmp_path).backlog
    assert backlog is not None
    assert backlog.wait_s == 0.0


def test_the_committed_results_have_every_figure() -> None:
    """As the files are, so are they read: no scenario or figure has another name by now."""
    times = read_alert_times(RESULTS)
    assert len(times.rows) == 5
    assert all(source.day for source in times.sources)


@pytest.mark.parametrize("text", ["{", "[]", '{"figures": {"a": {}}}', '{"figures": {}}'])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "alerts-2000.json").write_text(text)
    with pytest.raises(DataError, match=r"alerts-2000\.json.*Run `flagger bench alerts"):
        read_alert_times(tmp_path)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write the report of an empty evaluation with these times; return its page and its JSON."""
    monkeypatch.setattr("train.evaluate_report._PLOTS", {})
    whole = dict.fromkeys(("roc_auc", "average_precision", "accuracy", "money_saved_share"))
    empty = {"mean": 0.5, "low": None, "high": None}
    measures: dict[str, Any] = {
        "data": "payments.parquet",
        "label_delay_days": 7,
        "maturity": {
            **{"labels_as_of": "2026-01-08", "mature_to": "2026-01-01", "immature_days": 7},
            **{"immature_transactions": 0, "unlabelled_transactions": 0},
        },
        "summary": {TREES: dict.fromkeys(whole, empty)},
        "targets": {"alert_budget": 0.01},
        "costs": {"review_cost": 5.0, "friction_cost": 30.0},
        **{"periods": [], "reviews_saved": {}, "segments": {}, "lift": {TREES: []}},
    }

    def written(results: Path) -> tuple[str, dict[str, Any]]:
        evaluation = Evaluation(measures, [], {}, [], None)  # type: ignore[arg-type]
        write_evaluation(tmp_path, evaluation, Extras(times=read_alert_times(results)))
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        return text, json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))

    return written


@pytest.mark.parametrize(
    ("rival_p50_ms", "faster"),
    [(10.0, "one message at a time is the faster one"), (20.0, "the stream is the faster one")],
)
def test_the_report_says_who_is_faster(
    tmp_path: Path, page: Any, rival_p50_ms: float, faster: str
) -> None:
    results = tmp_path / "results"
    write_results(results, rival_p50_ms=rival_p50_ms)
    text, content = page(results)
    assert faster in text
    assert "Measured elsewhere" in text
    assert "would wait 540 s" in text
    assert "<code>flagger bench alerts --repeats 3</code> makes it" in text
    assert [row["p50_ms"] for row in content["alert_times"]["rows"]] == [31.0, 14.0, rival_p50_ms]


def test_without_results_the_report_says_what_makes_them(tmp_path: Path, page: Any) -> None:
    text, content = page(tmp_path / "nowhere")
    for command in ("latency --rate 2000", "alerts", "rival"):
        assert f"flagger bench {command} --repeats 3</code> makes it" in text
    assert "faster" not in text
    assert content["alert_times"]["rows"] == []
