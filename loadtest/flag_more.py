"""Lowers the live version's review threshold until a wanted share of payments is flagged.

A review takes an explanation, an approval does not. At the model's own threshold a load test meets
some ten reviews, too few for their p99. Scores of customers who all pay alike rise while the test
runs, because they pay more and more often. So that share of the payments comes from a few busy
customers (`PaymentMaker.busy_share`): their scores soon are above most others' and stay there,
and the threshold is put between the two. The share still rises in later runs, with what the
terminals have seen; the result says how many were explained.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from flagger.errors import StackError
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import live_version, load_version
from flagger.policies import set_policy
from loadtest.observe import ask_gateway, evenly_over
from loadtest.payments import PaymentMaker

__all__ = ["flag_more"]

_ASKED = 2_000
_ASKING_S = 20.0
_LEAST_SCORED = 0.9


def flag_more(repository: Path, port: int, key: str, share: float) -> float:
    """Set the threshold and wait until the gateway has it; return it.

    Args:
        repository: Model repository that the gateway follows; its policy is changed.
        port: The gateway's, on this machine.
        key: API key.
        share: Share of payments to flag at first, 0 to 1.

    Raises:
        StackError: The gateway's model scored too few of the payments asked about.
    """
    maker = PaymentMaker(f"{time.time_ns():x}f", seed=1, busy_share=share)
    bodies = [maker.new().body for _ in range(_ASKED)]
    answers = ask_gateway(port, bodies, key, wait_for_turn=evenly_over(_ASKING_S, len(bodies)))
    # In the first half the busy ones have hardly any history yet.
    later = answers[_ASKED // 2 :]
    scores = [answer.score for answer in later if answer.score is not None]
    if len(scores) < _LEAST_SCORED * len(later):
        raise StackError(
            f"The model scored only {len(scores):,} of {len(later):,} payments: look at "
            f"gateway.log."
        )
    threshold = float(np.quantile(scores, 1 - share))
    present = load_version(repository, live_version(repository)).policy
    decline = max(present.decline_threshold, threshold)
    set_policy(repository, threshold, decline, why="more reviews, for a load test")
    time.sleep(3 * FOLLOW_INTERVAL_S)
    return threshold
