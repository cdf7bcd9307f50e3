"""`publish-<rate>`: versions are published and rolled back while the gateway decides.

Each publish is the whole of `flagger export`: proof, loading by Triton beside what it serves, proof
against Triton, pointer. The model is the live one again, under a new number, in a copy of the
repository. The load is `gateway-open-loop`'s, at a constant arrival rate whatever the answers do.

A run fails if a request fails, if the gateway does not follow a switch, or if an answer names
another version than the one that was live. A rate that these cores cannot hold shows as failures
outside of the switches too; what was offered and what was sent is among the figures. The publisher
would have a machine of its own; here it takes its CPU time from the gateway, so it has a lower
priority (on Linux). Triton's loading has not: that is part of what is measured.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flagger.errors import StackError
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import live_version
from loadtest import load_stack
from loadtest.bench_result import BenchResult
from loadtest.load_stack import LoadPlan, Target, started
from loadtest.observe import metric_values
from loadtest.open_loop import run_locust
from loadtest.own_models import copy_repository, training_of_live
from loadtest.recording import Recording, quantile
from loadtest.switches import PUBLISH, ROLL_BACK, Found, Switch, find, switch

__all__ = ["PublishPlan", "add_run", "bench_publish", "faults"]

_LEAD_S = 2.0
"""Measured seconds before the first switch."""
_REST_S = 2 * FOLLOW_INTERVAL_S
"""Least time from one switch's end to the next: the gateway has looked by then."""
_POLL_S = 0.1
_NICE = 10
_START_S = 60.0
"""Most that the load may take to begin."""


@dataclass(frozen=True)
class PublishPlan:
    """What to run.

    Attributes:
        rate_per_s: Requests per second.
        switches: Publishes in each run, and as many roll-backs, in turns.
        every_s: From the begin of one switch to the next, unless the first takes longer.
    """

    rate_per_s: float = 1_000.0
    switches: int = 3
    every_s: float = 7.0

    @property
    def scenario(self) -> str:
        """Its permanent id."""
        return f"publish-{self.rate_per_s:.0f}"

    @property
    def measured_s(self) -> float:
        """Measured seconds of each run."""
        return _LEAD_S + 2 * self.switches * self.every_s + _REST_S


def bench_publish(
    repository: Path,
    out: Path,
    *,
    plan: PublishPlan,
    repeats: int,
    on_step: Callable[[str], None],
) -> BenchResult:
    """Run the scenario; the next run goes on with the versions that the last one left.

    Args:
        repository: Model repository with a live version; it is copied.
        out: Folder for copy, stack and logs.
        plan: What to run.
        repeats: How often to measure.
        on_step: Told what happens now.

    Returns:
        The figures; `settings` has one of `verdicts` for each run, and the `reasons` against.

    Raises:
        PublishError: A version was refused.
        StackError: A part did not start, or ended.
    """
    out.mkdir(parents=True, exist_ok=True)
    models = copy_repository(repository, out / "model_repository")
    training = training_of_live(models, out / "training")
    load_plan = LoadPlan(out, plan.rate_per_s, plan.measured_s, repeats)
    settings = {"rate_per_s": plan.rate_per_s, "every_s": plan.every_s}
    result = BenchResult(plan.scenario, {**settings, "duration_s": plan.measured_s})
    verdicts, reasons = [], []
    with started(load_plan, models, on_step) as target:
        for run in range(repeats):
            on_step(f"run {run + 1} of {repeats}: {plan.rate_per_s:,.0f} requests/s")
            before = live_version(models)
            with ThreadPoolExecutor(1, "publisher", initializer=_give_way) as pool:
                publisher = pool.submit(_publish, plan, target, training, models)
                recording = run_locust(target, load_plan, run)
                switches = publisher.result()
            found = find(recording, switches)
            add_run(result, recording, before, switches, found)
            against = faults(recording, switches, found)
            verdicts.append("FAIL" if against else "PASS")
            reasons += [f"run {run + 1}: {fault}" for fault in against]
    result.settings |= {"verdicts": verdicts, "reasons": reasons}
    return result


def _give_way() -> None:
    """Give this thread, and those that it starts, a lower priority than the process has."""
    if sys.platform == "linux":  # elsewhere a priority belongs to a whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def _publish(plan: PublishPlan, target: Target, training: Path, models: Path) -> list[Switch]:
    """Switch versions in the measured part of a load that is about to begin."""
    asked = _asked(target)
    end_s = time.monotonic() + _START_S
    while _asked(target) == asked:
        if time.monotonic() > end_s:
            raise StackError(f"The gateway got no request in {_START_S:.0f} s: look at locust.log.")
        time.sleep(_POLL_S)
    first_s = time.perf_counter() + load_stack.WARM_UP_S + _LEAD_S
    done: list[Switch] = []
    for i in range(2 * plan.switches):
        rested_s = done[-1].end_s + _REST_S if done else 0.0
        due_s = max(first_s + i * plan.every_s, rested_s)
        time.sleep(max(due_s - time.perf_counter(), 0.0))
        action = ROLL_BACK if i % 2 else PUBLISH
        done.append(switch(action, training, models, target.triton_url))
    return done


def _asked(target: Target) -> float:
    name = "flagger_gateway_responses_total"
    return metric_values(f"{target.url}/metrics", name, "route").get("/v1/score", 0.0)


def add_run(
    result: BenchResult, recording: Recording, before: str, switches: list[Switch], found: Found
) -> None:
    """Add one run's figures.

    Args:
        result: Gets them.
        recording: What the load left.
        before: The version that was live before the first switch.
        switches: In their order.
        found: What the answers say about them.
    """
    requests = len(recording.due_s)
    result.add("offered", recording.rate_per_s, "requests/s")
    result.add("sent", recording.achieved_per_s, "requests/s")
    result.add("requests", requests, "")
    failures = sum(recording.failures.values())
    result.add("answered", (requests - failures) / recording.duration_s, "requests/s")
    result.add("failures", failures, "requests")
    result.add("by fallback", recording.sources.get("fallback", 0), "requests")
    result.add("by another version than the live one", found.stale, "requests")
    result.add("answers of the version before", found.answers.get(before, 0), "")
    published = [one.version for one in switches if one.action == PUBLISH]
    for number, version in enumerate(published, start=1):
        result.add(f"answers of publish {number}", found.answers.get(version, 0), "")
    for name, is_during in (("outside of switches", False), ("during switches", True)):
        rows = zip(recording.latencies_ms, found.during, recording.failed, strict=True)
        of_name = [(ms, failed) for ms, during, failed in rows if during == is_during]
        values_ms = [ms for ms, failed in of_name if not failed]
        result.add(f"answered {name}", len(values_ms), "requests")
        result.add(f"failed {name}", len(of_name) - len(values_ms), "requests")
        if values_ms:
            result.add(f"p50 {name}", quantile(values_ms, 0.5), "ms")
            result.add(f"p99 {name}", quantile(values_ms, 0.99), "ms")
    for action in (PUBLISH, ROLL_BACK):
        pairs = zip(switches, found.took_s, strict=True)
        took_s = [s for one, s in pairs if one.action == action and not math.isnan(s)]
        if took_s:
            result.add(f"{action} to first answer, slowest", max(took_s), "s")
    result.add("generator CPU", 100 * max(recording.cpu_shares, default=0.0), "%")


def faults(recording: Recording, switches: list[Switch], found: Found) -> list[str]:
    """Return what is against a run, one sentence each; none if it kept the promise."""
    if not recording.due_s:
        return ["No request was answered while it was measured: look at locust.log."]
    told = [
        f"{count:,} of {len(recording.due_s):,} requests failed: {reason}."
        for reason, count in sorted(recording.failures.items())
    ]
    if recording.failures:
        pairs = zip(recording.failed, found.during, strict=True)
        inside = sum(failed and during for failed, during in pairs)
        told.append(
            f"{inside:,} of the failures were under way during a switch. Those outside are the "
            f"rate's: ask for a lower --rate, or for more cores."
        )
    end_s = recording.start_s + recording.duration_s
    for number, (one, took_s) in enumerate(zip(switches, found.took_s, strict=True), start=1):
        name = f"Switch {number} ({one.action}, to version {one.version})"
        if one.begin_s < recording.start_s or one.end_s > end_s:
            told.append(f"{name} was not within the measured part: the machine was too slow.")
        elif math.isnan(took_s):
            told.append(f"{name} was not followed: no answer names the version.")
    if found.stale:
        told.append(f"{found.stale:,} answers name another version than the one that was live.")
    return told
