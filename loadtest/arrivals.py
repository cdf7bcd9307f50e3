"""When requests are due: a rate over time, turned into a schedule that is fixed before the run.

An open loop: what is due is due, however slow the answers are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONSTANT", "SHAPES", "due_times_s"]

CONSTANT = "constant"
_WAVES = 10

Points = tuple[tuple[float, float], ...]
SHAPES: dict[str, Points] = {
    CONSTANT: ((0.0, 1.0), (1.0, 1.0)),
    # As a day begins: from a tenth up to the rate, which then holds for a fifth of the time.
    "ramp": ((0.0, 0.1), (0.8, 1.0), (1.0, 1.0)),
    # A burst: from one moment to the next three times as much, for a fifth of the time.
    "spike": ((0.0, 1 / 3), (0.4, 1 / 3), (0.4, 1.0), (0.6, 1.0), (0.6, 1 / 3), (1.0, 1 / 3)),
    # Hours of days: ten waves between half of the rate and the rate.
    "soak": tuple((i / (2 * _WAVES), 0.5 if i % 2 == 0 else 1.0) for i in range(2 * _WAVES + 1)),
}
"""Shape -> (share of the time, share of the rate) in order, straight lines between them."""
_GRID = 20_001


def due_times_s(shape: str, rate_per_s: float, duration_s: float) -> NDArray[np.float64]:
    """Return when requests are due, seconds from the beginning, ascending float64 (requests,).

    Request i is due when the rate's integral over time reaches i.

    Args:
        shape: One of `SHAPES`.
        rate_per_s: The highest rate, requests per second.
        duration_s: How long.
    """
    times, shares = np.array(SHAPES[shape]).T
    grid = np.union1d(np.linspace(0.0, 1.0, _GRID), times)
    # Exact: between two grid points the rate is a straight line, and a step is on one of them.
    middles = (grid[1:] + grid[:-1]) / 2
    due = np.concatenate([[0.0], np.cumsum(np.interp(middles, times, shares) * np.diff(grid))])
    due *= rate_per_s * duration_s
    count = int(np.ceil(due[-1] - 1e-6))
    found: NDArray[np.float64] = np.interp(np.arange(count), due, grid) * duration_s
    return found
