from __future__ import annotations

import math

import pytest

from loadtest.bench_result import BenchResult
from loadtest.payments import APPROVED, EXPLAINED, Checked
from loadtest.recording import OUTSIDE, Recording, quantile
from loadtest.slo import SCENARIO, add_decisions, add_latency, judge

RATE_PER_S = 100.0


def kind_of(i: int) -> str:
    """Every fourth is flagged."""
    return APPROVED if i % 4 else EXPLAINED


def recording(
    latencies_ms: list[float],
    *,
    fault: str = "",
    cpu: float = 0.2,
    sent_late_s: float = 0.0,
    late_s: float = 0.001,
    fallbacks: int = 0,
) -> Recording:
    """A second's run of evenly spaced requests; the last gets the fault, the first fall back."""
    result = Recording(rate_per_s=RATE_PER_S, start_s=50.0, duration_s=1.0, cpu_shares=[0.1, cpu])
    for i, latency_ms in enumerate(latencies_ms):
        due_s = 50.0 + i / RATE_PER_S
        is_last = i == len(latencies_ms) - 1
        result.add(
            due_s=due_s,
            sent_s=due_s + sent_late_s,
            done_s=due_s + latency_ms / 1000,
            late_s=late_s,
            is_repeat=is_last,
            checked=Checked("", "fallback")
            if i < fallbacks
            else Checked(fault if is_last else "", "model", kind_of(i), "1"),
            stages={"state": 0.25, "model": 1.0},
        )
    return result


def add_both(result: BenchResult, found: Recording) -> None:
    add_latency(result, found)
    add_decisions(result, found)


def test_passes_within_the_limit() -> None:
    assert judge(recording([99.0] * 100)).verdict == "PASS"


def test_one_slow_request_in_a_hundred_is_allowed_and_two_are_not() -> None:
    assert judge(recording([20.0] * 99 + [500.0])).verdict == "PASS"
    judgement = judge(recording([20.0] * 98 + [101.5, 500.0], late_s=0.04))
    assert judgement.verdict == "FAIL"
    assert "p99 is 101.5 ms; the limit is 100 ms" in judgement.reasons[0]
    assert "40.0 ms late" in judgement.reasons[0]


@pytest.mark.parametrize("fault", ["status 503", "no answer", "a repeat answered differently"])
def test_one_failure_fails_the_run(fault: str) -> None:
    judgement = judge(recording([5.0] * 100, fault=fault))
    assert judgement.verdict == "FAIL"
    assert judgement.reasons == (f"1 of 100 requests failed: {fault}.",)


def test_answers_without_the_model_fail_the_run_however_fast_they_are() -> None:
    assert judge(recording([5.0] * 100, fallbacks=5)).verdict == "PASS"
    judgement = judge(recording([2.0] * 100, fallbacks=6))
    assert judgement.verdict == "FAIL"
    assert judgement.reasons == (
        "6% were answered without the model (limit 5%): Triton or Valkey is away, or too slow.",
    )


def test_a_busy_generator_makes_the_run_invalid() -> None:
    judgement = judge(recording([5.0] * 100, cpu=0.95))
    assert judgement.verdict == "INVALID"
    assert "95% of its core" in judgement.reasons[0]
    assert judge(recording([5.0] * 100, cpu=0.9)).verdict == "PASS"


def test_a_load_that_was_not_there_makes_the_run_invalid() -> None:
    judgement = judge(recording([5.0] * 94))
    assert judgement.verdict == "INVALID"
    assert "Only 94.0 of 100.0 requests/s" in judgement.reasons[0]
    assert judge(recording([5.0] * 95)).verdict == "PASS"


def test_requests_that_were_sent_after_the_end_do_not_count_as_load() -> None:
    assert judge(recording([500.0] * 100, sent_late_s=0.1)).verdict == "INVALID"


def test_an_invalid_run_still_tells_what_failed() -> None:
    judgement = judge(recording([5.0] * 50, fault="status 500"))
    assert judgement.verdict == "INVALID"
    assert judgement.reasons[-1] == "1 of 50 requests failed: status 500."


def test_no_request_at_all_is_invalid() -> None:
    assert judge(recording([])).verdict == "INVALID"


def test_a_streamer_that_falls_behind_makes_the_run_invalid() -> None:
    assert judge(recording([5.0] * 100), streamed_share=0.95).verdict == "PASS"
    judgement = judge(recording([5.0] * 100), streamed_share=0.5)
    assert judgement.verdict == "INVALID"
    assert "only 50%" in judgement.reasons[0]


def test_a_busy_machine_excuses_no_pass_but_explains_a_failure() -> None:
    assert judge(recording([5.0] * 100), others_cores=1.5).verdict == "PASS"
    assert judge(recording([500.0] * 100), others_cores=0.25).verdict == "FAIL"
    judgement = judge(recording([500.0] * 100), others_cores=1.5)
    assert judgement.verdict == "INVALID"
    assert "Other programs used 1.5 cores" in judgement.reasons[0]
    assert "p99 is 500.0 ms" in judgement.reasons[1]


def test_figures_of_a_run() -> None:
    result = BenchResult(SCENARIO, {})
    add_both(result, recording([float(i) for i in range(1, 101)]))
    figures = {name: values[0] for name, values in result.runs.items()}
    assert (figures["p50"], figures["p95"], figures["p99"], figures["max"]) == pytest.approx(
        (50.0, 95.0, 99.0, 100.0)
    )
    assert figures["explained p99, inside the gateway"] == 1.25
    assert figures["sent"] == RATE_PER_S
    assert (figures["approved"], figures["explained"], figures["unexplained"]) == (75, 25, 0)
    # Of 1, 5, ..., 97 and of the others.
    assert (figures["explained p50"], figures["explained p99"]) == pytest.approx((49.0, 97.0))
    assert (figures["approved p50"], figures["approved p99"]) == pytest.approx((51.0, 100.0))
    assert (figures["by model"], figures["by fallback"]) == (100.0, 0.0)
    assert figures["generator CPU"] == pytest.approx(20.0)
    assert figures["model p50"] == 1.0
    assert figures[f"{OUTSIDE} p50"] == pytest.approx(50.0 - 1.25)


def test_requests_are_measured_after_the_warm_up_only() -> None:
    run = recording([])
    assert [run.measures(due_s) for due_s in (49.9, 50.0, 50.9, 51.0)] == [False, True, True, False]


def test_quantiles_are_values_that_were_seen() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert quantile([3.0, 1.0, 2.0], 0.34) == 2.0
    assert math.isnan(quantile([], 0.5))
