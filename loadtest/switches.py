"""Versions that come and go under load, and what the answers of a gateway then say about it.

The gateway is one process, so a switch is one moment in it: what is sent after the first answer of
the new version is answered by the new version.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

from export.publish import export_model, roll_back
from loadtest.recording import Recording

__all__ = ["PUBLISH", "ROLL_BACK", "Found", "Switch", "find", "switch"]

PUBLISH, ROLL_BACK = "publish", "roll back"


@dataclass(frozen=True, slots=True)
class Switch:
    """One change of the live version.

    Attributes:
        action: `PUBLISH` or `ROLL_BACK`.
        version: The version that is live from then on.
        begin_s: When it was asked for, `time.perf_counter` seconds, which processes of one Linux
            machine share.
        end_s: When it was reported done.
    """

    action: str
    version: str
    begin_s: float
    end_s: float


@dataclass
class Found:
    """What the answers say.

    Attributes:
        windows_s: By switch, from its begin until it was done and the new version answered.
        took_s: By switch, from its begin to the first answer of the new version; NaN if none came
            before the next switch.
        answers: Decisions of the model by the version that they name, without repeats.
        stale: Answers of another version to requests that were sent after the new one's first.
        during: By request, True if it was under way while a version was switched.
    """

    windows_s: list[tuple[float, float]] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    stale: int = 0
    during: list[bool] = field(default_factory=list)


def switch(action: str, training: Path, repository: Path, triton_url: str) -> Switch:
    """Publish a training as a new version as `flagger export` does, or roll back.

    Raises:
        PublishError: The version was refused, or Triton does not serve it.
    """
    begin_s = time.perf_counter()
    if action == PUBLISH:
        version = export_model(training, repository, triton_url=triton_url)
    else:
        version = roll_back(repository, triton_url=triton_url)
    return Switch(action, version, begin_s, time.perf_counter())


def find(recording: Recording, switches: list[Switch]) -> Found:
    """Look for the switches, in their order, in what was answered."""
    found = Found()
    rows = list(zip(recording.versions, recording.sent_s, recording.done_s, strict=True))
    for version, _, _ in rows:
        if version:
            found.answers[version] = found.answers.get(version, 0) + 1
    ends_s = [*(later.begin_s for later in switches[1:]), float("inf")]
    for one, next_s in zip(switches, ends_s, strict=True):
        first_s = min(
            (done for told, _, done in rows
             if told == one.version and one.begin_s < done < next_s),
            default=float("nan"),
        )  # fmt: skip
        found.took_s.append(first_s - one.begin_s)
        answered_s = one.end_s if math.isnan(first_s) else first_s
        found.windows_s.append((one.begin_s, max(one.end_s, answered_s)))
        found.stale += sum(
            bool(told) and told != one.version and first_s < sent < next_s and done < next_s
            for told, sent, done in rows
        )
    found.during = [
        any(due < end and done > begin for begin, end in found.windows_s)
        for due, done in zip(recording.due_s, recording.done_s, strict=True)
    ]
    return found
