"""Adds the reasons to a flagged decision, where there is time left to ask for them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelError
from flagger.models import EXPLAIN_ENTRY
from flagger.policy import APPROVE, DECISIONS
from flagger.triton import ModelName
from flagger.wire.messages import Decision
from gateway.live import Serving
from gateway.ports import ModelScorer

__all__ = ["MAX_EXPLAIN_MS", "add_reasons"]

MAX_EXPLAIN_MS = 30.0
"""Longest wait for an explanation, of 100 ms; one takes about 2 ms."""
_LEAST_MS = 1.0


async def add_reasons(
    decision: Decision,
    row: npt.NDArray[np.float32],
    serving: Serving,
    scorer: ModelScorer,
    left_ms: float,
) -> bool:
    """Write why into a review or a decline; return False if the policy's reason stands alone.

    Args:
        decision: Gets `reasons` and `reason_codes`.
        row: The feature row that was scored, float32 [1, F].
        serving: The version that scored it.
        scorer: Asks Triton.
        left_ms: Time that may be used.
    """
    code = DECISIONS.index(decision.decision)
    if code == APPROVE or decision.score is None:
        return True
    contributions = None
    limit_ms = min(left_ms, MAX_EXPLAIN_MS)
    if limit_ms >= _LEAST_MS:
        try:
            model = ModelName(EXPLAIN_ENTRY, serving.model.version)
            contributions = await scorer.explain(np.ascontiguousarray(row), model, limit_ms)
        except ModelError:
            contributions = None
    scores = np.array([decision.score], dtype=np.float32)
    codes = np.array([code], dtype=np.uint8)
    (reasons,) = serving.reasons.write(row, scores, codes, contributions)
    decision.reasons = [reason.text for reason in reasons]
    decision.reason_codes = [reason.code for reason in reasons]
    return contributions is not None
