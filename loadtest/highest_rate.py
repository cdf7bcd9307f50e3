"""`gateway-highest-rate` and its like: the highest arrival rate at which a promise is kept.

Runs of `gateway-open-loop`, faster while they pass and slower while they do not, until the rate is
known to `PRECISION`. A single run near the limit passes on one day and fails on the next: look at
the spread over several searches. A run that other programs disturbed counts as not passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from loadtest.bench_result import BenchResult
from loadtest.load_stack import LoadPlan, Target
from loadtest.open_loop import load

__all__ = ["MAX_RUNS", "PRECISION", "highest_rate", "search"]

STEP = 1.5
PRECISION = 1.15
"""The rate that passed and the lowest that did not are no further apart than this factor."""
MAX_RUNS = 10
"""Runs of one search."""


def search(passes: Callable[[float], bool], start: float) -> float | None:
    """Return the highest value that passes, to `PRECISION`; None: none was found.

    Args:
        passes: Asked at most `MAX_RUNS` times; values that pass lie below those that do not.
        start: Where to begin.
    """
    low: float | None = None
    high: float | None = None
    value = start
    for _ in range(MAX_RUNS):
        if passes(value):
            low = value
        else:
            high = value
        if high is None:
            value *= STEP
        elif low is None:
            value /= STEP
        elif high / low <= PRECISION:
            break
        else:
            value = math.sqrt(low * high)
    return low


def highest_rate(
    target: Target, plan: LoadPlan, on_step: Callable[[str], None] = lambda _: None
) -> BenchResult:
    """Search `plan.repeats` times, each from `plan.rate_per_s` on.

    A search in which no run passed counts as 0. Also written to
    `<out>/<scenario>.json`: whom it asked, `-highest-rate`, and `-2` for two gateways.

    Raises:
        StackError: Locust did not run.
    """
    runs: list[dict[str, object]] = []
    result = BenchResult(
        _scenario(plan),
        {
            "from_rate_per_s": plan.rate_per_s,
            "duration_s": plan.duration_s,
            "stream_rate_per_s": plan.stream_rate_per_s,
            "gateways": plan.gateways,
            "runs": runs,
        },
    )
    p99_ms: dict[float, float] = {}

    def passes(rate_per_s: float) -> bool:
        one = replace(plan, rate_per_s=rate_per_s, repeats=1)
        figures, (judgement,) = load(target, one, on_step)
        p99_ms[rate_per_s] = figures.median("p99")
        runs.append(
            {
                "rate_per_s": round(rate_per_s, 1),
                "p99_ms": round(p99_ms[rate_per_s], 1),
                "verdict": judgement.verdict,
                "reasons": judgement.reasons,
            }
        )
        return judgement.verdict == "PASS"

    for _ in range(plan.repeats):
        found = search(passes, plan.rate_per_s) or 0.0
        result.add("highest rate that passed", found, "requests/s")
        if found:
            result.add("p99 there", p99_ms[found], "ms")
    result.write(plan.out)
    return result


def _scenario(plan: LoadPlan) -> str:
    several = f"-{plan.gateways}" if plan.gateways > 1 else ""
    return f"{plan.asked[0]}-highest-rate{several}"
