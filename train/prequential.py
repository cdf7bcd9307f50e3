"""Prequential validation: several periods, each judged by a model of its own past.

    period 1 | train window | label delay | test |
    period 2        | train window | label delay | test |
    period 3               | train window | label delay | test |

The test windows follow each other without overlap. Train windows overlap, so the periods are not
independent: an interval over them is somewhat too narrow.

Only days with mature labels are judged: frauds of a day are known `label_delay` later, so the last
days of a file say nothing about fraud. They are left out, not counted as days without fraud.

Scheme: Fraud Detection Handbook, chapter 5, "Validation strategies".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from scipy import stats

from flagger.errors import ConfigurationError
from train.split import Windows

__all__ = ["Interval", "PrequentialPlan", "choose_periods", "interval"]

_LEAST_TRAIN_DAYS = 5


@dataclass(frozen=True)
class PrequentialPlan:
    """How the periods are laid out.

    Attributes:
        periods: How many.
        train_days: Days of each train window; the first ones are shorter if the file begins later.
        test_days: Days of each test window, and from one period to the next.
        label_delay_days: Days until fraud is known, 0 to 7.
        test_to: Last day that may be judged; None: the last one with mature labels.
        labels_as_of: Day on which the outcomes in the file were known; None: its last day.
    """

    periods: int = 4
    train_days: int = 45
    test_days: int = 7
    label_delay_days: int = 7
    test_to: date | None = None
    labels_as_of: date | None = None

    def __post_init__(self) -> None:
        if min(self.periods, self.test_days) < 1 or self.train_days < _LEAST_TRAIN_DAYS:
            raise ConfigurationError(
                f"There must be at least one period ({self.periods}) of at least one test day "
                f"({self.test_days}) and {_LEAST_TRAIN_DAYS} train days ({self.train_days})."
            )

    def last_mature_day(self, last: date) -> date:
        """Return the last day whose outcomes are known.

        Args:
            last: Last day of the file.
        """
        as_of = self.labels_as_of or last
        return min(last, as_of - timedelta(days=self.label_delay_days))


def choose_periods(first: date, last: date, plan: PrequentialPlan) -> tuple[Windows, ...]:
    """Return the periods from the earliest to the latest.

    Args:
        first: First day that may be learned from.
        last: Last day of the file.
        plan: How they are laid out.

    Raises:
        ConfigurationError: The days are too few, or `test_to` has no mature labels.
    """
    mature = plan.last_mature_day(last)
    test_to = plan.test_to or mature
    if test_to > mature:
        raise ConfigurationError(
            f"The outcomes of {test_to} are not known yet: labels as of "
            f"{plan.labels_as_of or last} with a delay of {plan.label_delay_days} days are "
            f"mature up to {mature}. Judge earlier days, or give the day on which the labels were "
            f"taken (--labels-as-of)."
        )
    found = []
    for back in reversed(range(plan.periods)):
        end = test_to - timedelta(days=back * plan.test_days)
        test_from = end - timedelta(days=plan.test_days - 1)
        train_to = test_from - timedelta(days=plan.label_delay_days + 1)
        train_from = max(first, train_to - timedelta(days=plan.train_days - 1))
        if (train_to - train_from).days + 1 < _LEAST_TRAIN_DAYS:
            raise ConfigurationError(
                f"{plan.periods} periods of {plan.test_days} test days up to {test_to}, with a "
                f"label delay of {plan.label_delay_days} days, leave less than "
                f"{_LEAST_TRAIN_DAYS} days to learn from: the first day is {first}. Ask for fewer "
                f"periods or shorter tests, or give more data."
            )
        found.append(Windows(train_from, train_to, test_from, end))
    return tuple(found)


@dataclass(frozen=True)
class Interval:
    """Mean over the periods, with its 95 % interval.

    Attributes:
        mean: Mean of the periods.
        low: Lower end; None if there is one period only.
        high: Upper end.
    """

    mean: float
    low: float | None
    high: float | None


def interval(values: Iterable[float], lowest: float = -np.inf, highest: float = np.inf) -> Interval:
    """Return the mean and Student's t interval (95 %, n - 1 degrees of freedom).

    It is cut to the range of the measure. The true mean lies in that range, so the cut interval
    covers it exactly as often as the whole one: none that held it loses it.

    On intervals for bounded parameters: Mandelkern, Statistical Science 17 (2), 2002.

    Args:
        values: One for each period.
        lowest: Least value that the measure can have.
        highest: Greatest value that it can have.

    >>> interval([1.0, 2.0, 3.0])
    Interval(mean=2.0, low=-0.484..., high=4.484...)
    >>> interval([1.0, 2.0, 3.0], lowest=0.0)
    Interval(mean=2.0, low=0.0, high=4.484...)
    """
    found = np.array(list(values), dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Interval(mean, max(mean - half, lowest), min(mean + half, highest))
