"""Holds a decline for a person while the brakes are engaged."""

from __future__ import annotations

import numpy as np

from flagger.brakes import Brakes
from flagger.policy import DECISIONS, REVIEW
from flagger.wire.messages import Decision

__all__ = ["hold_if_braked"]


def hold_if_braked(decision: Decision, brakes: Brakes) -> None:
    """Count the model's decision; turn it from a decline into a review where the brakes say so."""
    wanted = np.array([DECISIONS.index(decision.decision)], dtype=np.uint8)
    if brakes.held(wanted)[0]:
        why = brakes.reason()
        decision.decision = DECISIONS[REVIEW]
        decision.reasons.insert(1, why.text)  # after the policy's own
        decision.reason_codes.insert(1, why.code)
