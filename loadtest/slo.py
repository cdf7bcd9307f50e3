"""The promise to the payment service, and whether a load run kept it."""

from __future__ import annotations

from dataclasses import dataclass

from loadtest.bench_result import BenchResult
from loadtest.payments import APPROVED, EXPLAINED, UNEXPLAINED
from loadtest.recording import Recording, quantile

__all__ = [
    "EXPLAINED_SCENARIO",
    "P99_LIMIT_MS",
    "SCENARIO",
    "Judgement",
    "add_decisions",
    "add_latency",
    "judge",
]

SCENARIO = "gateway-open-loop"
EXPLAINED_SCENARIO = "gateway-explained"
P99_LIMIT_MS = 100.0
MAX_GENERATOR_CPU = 0.9
"""A generator busier than this share of one core measures itself."""
MAX_OTHERS_CORES = 0.25
"""A run that fails while other programs use more than this is no statement about the gateway."""
MAX_FALLBACK = 0.05
"""Most of the answers that may be given without the model: fast ones, that nobody wants."""
MIN_ACHIEVED = 0.95
"""Least share of the wanted load that must have been there."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run is worth.

    Attributes:
        verdict: `PASS`, `FAIL`, or `INVALID`: the load was not what it should have been.
        reasons: One sentence for each reason against it.
    """

    verdict: str
    reasons: tuple[str, ...] = ()


def judge(
    recording: Recording, *, streamed_share: float = 1.0, others_cores: float = 0.0
) -> Judgement:
    """Judge a run.

    Args:
        recording: What it left.
        streamed_share: Decisions of the streamer, as a share of what was sent through Kafka
            meanwhile.
        others_cores: Cores that other programs on this machine used meanwhile.
    """
    invalid = _faults_of_load(recording, streamed_share)
    broken = [
        f"{count:,} of {len(recording.due_s):,} requests failed: {reason}."
        for reason, count in sorted(recording.failures.items())
    ]
    p99_ms = quantile(recording.latencies_ms, 0.99)
    if p99_ms > P99_LIMIT_MS:
        late_ms = quantile(recording.late_s, 0.99) * 1000
        broken.append(
            f"p99 is {p99_ms:.1f} ms; the limit is {P99_LIMIT_MS:.0f} ms. (The generator itself "
            f"was up to {late_ms:.1f} ms late in 99 % of the requests.)"
        )
    answered = max(len(recording.due_s), 1)
    fallbacks = recording.sources.get("fallback", 0)
    if fallbacks > MAX_FALLBACK * answered:
        broken.append(
            f"{fallbacks / answered:.0%} were answered without the model (limit "
            f"{MAX_FALLBACK:.0%}): Triton or Valkey is away, or too slow."
        )
    if broken and others_cores > MAX_OTHERS_CORES:
        invalid.append(
            f"Other programs used {others_cores:.1f} cores of this machine meanwhile (limit "
            f"{MAX_OTHERS_CORES}), so what failed says little. Run it again while it is quiet."
        )
    verdict = "INVALID" if invalid else "FAIL" if broken else "PASS"
    return Judgement(verdict, (*invalid, *broken))


def _faults_of_load(recording: Recording, streamed_share: float) -> list[str]:
    if not recording.due_s:
        return ["No request was answered while it was measured: look at locust.log."]
    faults = []
    cpu = max(recording.cpu_shares, default=0.0)
    if cpu > MAX_GENERATOR_CPU:
        faults.append(
            f"The generator used {cpu:.0%} of its core (limit {MAX_GENERATOR_CPU:.0%}), so these "
            f"latencies are its own. Ask for a lower --rate, or run it on another machine (--url)."
        )
    achieved = recording.achieved_per_s / recording.rate_per_s
    if achieved < MIN_ACHIEVED:
        faults.append(
            f"Only {recording.achieved_per_s:,.1f} of {recording.rate_per_s:,.1f} requests/s were "
            f"sent (least {MIN_ACHIEVED:.0%}): this machine can not make that load beside the "
            f"gateway. Ask for a lower --rate, or run it on another machine (--url)."
        )
    if streamed_share < MIN_ACHIEVED:
        faults.append(
            f"The streamer decided only {streamed_share:.0%} of what --stream-rate sent meanwhile "
            f"(least {MIN_ACHIEVED:.0%}). Ask for a lower --stream-rate."
        )
    return faults


def add_latency(result: BenchResult, recording: Recording, prefix: str = "") -> None:
    """Add one run's latencies and counts, each figure's name with a prefix."""
    latencies_ms = recording.latencies_ms
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
        result.add(f"{prefix}{name}", quantile(latencies_ms, share), "ms")
    result.add(f"{prefix}p99 of the worst second", recording.worst_second_ms(), "ms")
    result.add(f"{prefix}sent", recording.achieved_per_s, "requests/s")
    result.add(f"{prefix}failures", sum(recording.failures.values()), "requests")
    result.add(f"{prefix}generator CPU", 100 * max(recording.cpu_shares, default=0.0), "%")
    result.add(f"{prefix}generator late p99", quantile(recording.late_s, 0.99) * 1000, "ms")


def add_decisions(result: BenchResult, recording: Recording) -> None:
    """Add what one run's answers of the gateway were, and its own times by stage."""
    latencies_ms = recording.latencies_ms
    answered = max(len(latencies_ms), 1)
    result.add("repeats", recording.repeats, "requests")
    for source in sorted({"model", "fallback", *recording.sources}):
        result.add(f"by {source}", 100 * recording.sources.get(source, 0) / answered, "%")
    for kind in (APPROVED, EXPLAINED, UNEXPLAINED):
        of_kind_ms = recording.of_kind(kind, latencies_ms)
        result.add(kind, len(of_kind_ms), "decisions")
        if of_kind_ms and kind != UNEXPLAINED:
            result.add(f"{kind} p50", quantile(of_kind_ms, 0.5), "ms")
            result.add(f"{kind} p99", quantile(of_kind_ms, 0.99), "ms")
            inside_ms = recording.of_kind(kind, recording.inside_ms)
            result.add(f"{kind} p99, inside the gateway", quantile(inside_ms, 0.99), "ms")
    for stage, durations_ms in recording.stages_ms.items():
        result.add(f"{stage} p50", quantile(durations_ms, 0.5), "ms")
        result.add(f"{stage} p99", quantile(durations_ms, 0.99), "ms")
