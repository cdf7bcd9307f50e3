"""Canary: a share of the customers is decided by a candidate, until it is published or stopped.

Customers are chosen by a hash of their key and the version, so a customer always meets the same
model, at every door, and another candidate tries other customers.

The guard compares both groups and asks to stop when

- the candidate flags a share that is more than twice, or less than half, of the live version's, and
  more than chance explains (four standard errors, from 1,000 decisions in each group on), or
- one in twenty of its last requests fails or takes longer than `FLAGGER_CANARY_TIMEOUT_MS`.

The live version decides whatever the candidate does not answer.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.features.hashing import key_of

__all__ = ["Canary", "CanaryGuard"]

MAX_SHARE = 0.5
"""More is no trial: publish the candidate then."""
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio, odd: Fibonacci hashing."""
_SHIFT = np.uint64(32)
_MIN_DECISIONS = 1_000
_MAX_RATIO = 2.0
_SURE = 4.0
_FORGET_DECISIONS = 100_000
"""Counts are halved beyond this, so that the guard sees the recent past."""
_REQUESTS = 200
_MIN_REQUESTS = 40
_MAX_FAILED_SHARE = 0.05


@dataclass(frozen=True)
class Canary:
    """Which customers a candidate decides.

    Attributes:
        version: The candidate.
        share: Of all customers, above 0 and at most `MAX_SHARE`.
        since: When it began, RFC 3339: the same version again is another trial.
    """

    version: str
    share: float
    since: str = ""

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= MAX_SHARE:
            raise ConfigurationError(
                f"A canary of {self.share:.3g} of the customers: the share must lie above 0 and at "
                f"most at {MAX_SHARE}. More: publish the version."
            )

    def chosen(self, customer_keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which customers the candidate decides, bool [n], of keys uint64 [n]."""
        mixed = (customer_keys ^ np.uint64(key_of(f"canary {self.version}"))) * _MULTIPLIER
        mixed = (mixed ^ (mixed >> _SHIFT)) * _MULTIPLIER
        picked: npt.NDArray[np.bool_] = (mixed >> _SHIFT) < np.uint64(self.share * 2**32)
        return picked


class CanaryGuard:
    """Watches one canary in one process."""

    def __init__(self) -> None:
        self._flagged = [0, 0]
        self._decided = [0, 0]
        self._failed: deque[bool] = deque(maxlen=_REQUESTS)

    def note_decisions(self, *, candidate: bool, decided: int, flagged: int) -> None:
        """Take note of decisions by the candidate or by the live version."""
        self._decided[candidate] += decided
        self._flagged[candidate] += flagged
        if self._decided[candidate] > _FORGET_DECISIONS:
            self._decided[candidate] //= 2
            self._flagged[candidate] //= 2

    def note_request(self, *, failed: bool) -> None:
        """Take note of a request to the candidate; too slow is failed."""
        self._failed.append(failed)

    def stop_reason(self) -> str | None:
        """Return why the canary must stop; None: it may go on."""
        failed, asked = sum(self._failed), len(self._failed)
        if asked >= _MIN_REQUESTS and failed > _MAX_FAILED_SHARE * asked:
            return f"{failed} of its last {asked} requests failed or were too slow"
        if min(self._decided) < _MIN_DECISIONS:
            return None
        live, candidate = (f / n for f, n in zip(self._flagged, self._decided, strict=True))
        pooled = sum(self._flagged) / sum(self._decided)
        error = math.sqrt(pooled * (1 - pooled) * sum(1 / n for n in self._decided))
        apart = candidate > _MAX_RATIO * live or candidate < live / _MAX_RATIO
        if apart and abs(candidate - live) > _SURE * error:
            return f"it flags {candidate:.2%}, the live version {live:.2%}"
        return None
