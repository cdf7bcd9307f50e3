"""One row's score from Triton, in what is left of the deadline."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt

from flagger.errors import ModelRefusedError, ModelUnavailableError
from flagger.triton import ModelName
from gateway.breaker import Breaker
from gateway.deadline import LOG_SHARE, MIN_MODEL_MS, Deadline
from gateway.ports import ModelScorer

__all__ = ["ask_model"]


async def ask_model(
    scorer: ModelScorer,
    breaker: Breaker,
    row: npt.NDArray[np.float32],
    model: ModelName,
    deadline: Deadline,
) -> float:
    """Return the probability of fraud of one row.

    Args:
        scorer: Asks Triton.
        breaker: Triton's; is told how it went.
        row: float32 [1, F].
        model: Whom to ask.
        deadline: The request's; what claim and Kafka need of it is left alone.

    Raises:
        ModelError: There is no score in time, or none that is a probability.
    """
    left_ms = deadline.left_ms(keep_share=LOG_SHARE)
    if left_ms < MIN_MODEL_MS:
        raise ModelUnavailableError(f"Only {left_ms:.1f} ms were left for the model.")
    if not breaker.allows():
        raise ModelUnavailableError("Triton does not answer; it is asked again within 1 s.")
    try:
        async with asyncio.timeout(left_ms / 1000):
            scores = await scorer.score(row, model, left_ms)
    except (TimeoutError, ModelUnavailableError) as error:
        if not deadline.is_shortened:  # a caller in a hurry says nothing about Triton
            breaker.failed()
        raise ModelUnavailableError(f"No score within {left_ms:.1f} ms.") from error
    breaker.succeeded()
    score = float(scores[0])
    if not 0.0 <= score <= 1.0:  # also NaN, which no threshold would catch
        raise ModelRefusedError(f"The model answered {score}, which is no probability.")
    return score
