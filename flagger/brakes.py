"""Brakes: when far more is declined or flagged than a healthy model would, people decide instead.

A model or a policy gone wrong can decline everybody. So each door watches what its policy wants for
the last `window_decisions` decisions. While the wanted declines, or the wanted flags (review and
decline), exceed their share, every decline becomes a review: a person looks, nobody is turned away
by a machine that is probably wrong. Reviews stay reviews, however many: a brake must never approve
what looks like fraud; too many reviews call a person through the metrics.

The share is taken of at least `min_decisions`, so that a few early declines engage nothing. What
this bounds: a model that declines everybody from its first decision on turns away
`decline_share * min_decisions` customers, 50 with the defaults.

The state is this process's and not stored: it follows from the recent decisions, and a process that
starts again begins with nothing counted. What was decided before is never decided again, so a
decision that the brakes changed stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flagger.policy import APPROVE, DECLINE
from flagger.reasons import Reason
from flagger.settings import Settings

__all__ = ["BRAKE_CODE", "CAPS", "BrakeLimits", "Brakes"]

BRAKE_CODE = "brake"
"""Reason code of a decline that the brakes turned into a review."""
CAPS = ("decline", "flag")
"""What is capped: declines, and flags (review or decline)."""
RELEASE_SHARE = 0.8
"""A brake lets go at this part of its cap, so that it does not flutter around it."""


@dataclass(frozen=True, slots=True)
class BrakeLimits:
    """When the brakes engage; see `FLAGGER_BRAKE_*`.

    Attributes:
        decline_share: Most declines among the last decisions, 0 to 1; 1 turns this cap off.
        flag_share: The same for reviews and declines together.
        window_decisions: How many last decisions count.
        min_decisions: The share is taken of at least so many.
    """

    decline_share: float = 0.05
    flag_share: float = 0.25
    window_decisions: int = 10_000
    min_decisions: int = 1_000

    @classmethod
    def of(cls, settings: Settings) -> BrakeLimits:
        """Return what the settings say."""
        return cls(
            settings.brake_decline_share,
            settings.brake_flag_share,
            settings.brake_window_decisions,
            settings.brake_min_decisions,
        )


class _Cap:
    """One rolling cap: the last `window` decisions as a ring of what counted."""

    def __init__(self, share: float, window: int, least: int) -> None:
        self._share = share
        self._window = window
        self._least = min(least, window)
        self.clear()

    def clear(self) -> None:
        self._ring = np.zeros(self._window, dtype=np.bool_)
        self._at = self._filled = self._sum = 0
        self.engaged = False

    def over(self, hits: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
        """Take the next decisions; return where the cap is exceeded, bool [n]; None: nowhere.

        Args:
            hits: Which of them count, bool [n], n at most the window.
        """
        n, new = len(hits), int(np.count_nonzero(hits))
        left = self._replace(hits)
        filled = self._filled
        self._filled = min(filled + n, self._window)
        start, self._sum = self._sum, self._sum + new - int(np.count_nonzero(left))
        if not self.engaged and start + new <= self._share * max(filled, self._least):
            return None  # even if all that count came before any that leaves
        size = np.clip(np.arange(filled + 1, filled + n + 1), self._least, self._window)
        running = start + np.cumsum(hits, dtype=np.int64) - np.cumsum(left, dtype=np.int64)
        exceeded = running > self._share * size
        calm = running <= RELEASE_SHARE * self._share * size
        # Between the two bounds the last clear word holds.
        last = np.maximum.accumulate(np.where(exceeded | calm, np.arange(n), -1))
        engaged: npt.NDArray[np.bool_] = np.where(last >= 0, exceeded[last], self.engaged)
        self.engaged = bool(engaged[-1])
        return engaged

    def _replace(self, hits: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Write into the ring and return what leaves it, bool [n]."""
        end = self._at + len(hits)
        if end <= self._window:
            left = self._ring[self._at : end].copy()
            self._ring[self._at : end] = hits
        else:
            first = self._window - self._at
            left = np.concatenate([self._ring[self._at :], self._ring[: end - self._window]])
            self._ring[self._at :] = hits[:first]
            self._ring[: end - self._window] = hits[first:]
        self._at = end % self._window
        return left


class Brakes:
    """The brakes of one door's process.

    Args:
        limits: When they engage.
        on_held: Called with the number of declines that became reviews.
    """

    def __init__(
        self, limits: BrakeLimits, on_held: Callable[[int], None] = lambda _: None
    ) -> None:
        self._limits = limits
        self._on_held = on_held
        shares = (limits.decline_share, limits.flag_share)
        self._caps = {
            name: _Cap(share, limits.window_decisions, limits.min_decisions)
            for name, share in zip(CAPS, shares, strict=True)
        }

    def is_engaged(self, cap: str) -> bool:
        """Return True while one of `CAPS` is exceeded."""
        return self._caps[cap].engaged

    def reset(self) -> None:
        """Forget the past: another model or other thresholds decide from now on."""
        for cap in self._caps.values():
            cap.clear()

    def held(self, wanted: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Take what the policy wants of the next transactions; return which are held for a person.

        Args:
            wanted: Decision codes, uint8 [n], in the order in which they are decided.

        Returns:
            bool [n]: True for declines that must become reviews.

        >>> brakes = Brakes(BrakeLimits(0.5, flag_share=1.0, window_decisions=4, min_decisions=4))
        >>> brakes.held(np.array([2, 2, 2, 1, 0, 0, 2], dtype=np.uint8)).tolist()
        [False, False, True, False, False, False, False]
        """
        held = np.zeros(len(wanted), dtype=np.bool_)
        for start in range(0, len(wanted), self._limits.window_decisions):
            part = wanted[start : start + self._limits.window_decisions]
            declines = part == DECLINE
            hits = {"decline": declines, "flag": part != APPROVE}
            for name, cap in self._caps.items():
                over = cap.over(hits[name])
                if over is not None:
                    held[start : start + len(part)] |= over & declines
        if held.any():
            self._on_held(int(np.count_nonzero(held)))
        return held

    def reason(self) -> Reason:
        """Return why a decline became a review."""
        limits = self._limits
        return Reason(
            BRAKE_CODE,
            f"would be declined; a person decides while more than {limits.decline_share:.3g} of "
            f"the last {limits.window_decisions:,} decisions are declines, or more than "
            f"{limits.flag_share:.3g} are flagged",
        )
