"""Windows of time: what is learned from, what thresholds are chosen on, what is judged.

    history | fit            | validation | gap >= label delay | test
            train_from                      train_to             test_from

Time-ordered, never shuffled. History before the train window feeds features only. The gap is
there because the outcomes of the train window's last days are known only `label_delay` later:
a model for the first test day could not have learned from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError

__all__ = ["Windows", "choose_windows", "day_of", "start_of_day_ms"]

_VALIDATION_SHARE = 0.15
_HISTORY_SHARE = 0.2
_TEST_SHARE = 0.15
_LEAST_TRAIN_DAYS = 2
"""One to fit and one to validate."""


def start_of_day_ms(day: date) -> int:
    """Return when a day begins in UTC, epoch milliseconds."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def day_of(time_ms: int) -> date:
    """Return the day in UTC of a time in epoch milliseconds."""
    return datetime.fromtimestamp(time_ms / 1000, tz=UTC).date()


@dataclass(frozen=True)
class Windows:
    """Whole days in UTC; each window contains both its days.

    Attributes:
        train_from: First day that is learned from.
        train_to: Last day of the train window, whose last part is the validation.
        test_from: First day that is judged.
        test_to: Last day that is judged.
    """

    train_from: date
    train_to: date
    test_from: date
    test_to: date

    def __post_init__(self) -> None:
        if self.train_days < _LEAST_TRAIN_DAYS or self.test_from > self.test_to:
            raise ConfigurationError(
                f"The train window {self.train_from} to {self.train_to} must have at least "
                f"{_LEAST_TRAIN_DAYS} days, and the test window {self.test_from} to "
                f"{self.test_to} at least one."
            )
        if self.gap_days < 0:
            raise ConfigurationError(
                f"The test window begins on {self.test_from}, before the train window's end on "
                f"{self.train_to}; a model must be judged on later days."
            )

    @property
    def train_days(self) -> int:
        """Days of the train window, validation included."""
        return (self.train_to - self.train_from).days + 1

    @property
    def gap_days(self) -> int:
        """Days between the train window and the test window."""
        return (self.test_from - self.train_to).days - 1

    @property
    def validation_from(self) -> date:
        """First day of the validation: the last 15 % of the train window, at least one day."""
        days = max(1, round(self.train_days * _VALIDATION_SHARE))
        return self.train_to - timedelta(days=days - 1)

    def require_gap(self, label_delay_days: int) -> None:
        """Raise ConfigurationError if the gap is shorter than the label delay."""
        if self.gap_days < label_delay_days:
            raise ConfigurationError(
                f"The gap between the train window (to {self.train_to}) and the test window (from "
                f"{self.test_from}) is {self.gap_days} days, shorter than the label delay of "
                f"{label_delay_days} days: the outcomes of the last train days would not have "
                f"been known on {self.test_from}, so the measures would be too good. End the "
                f"train window earlier, or say --allow-leakage."
            )

    def masks(self, event_time_ms: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
        """Return which times lie in `fit`, `validation` and `test`, each bool [n]."""
        edges = {
            "fit": (self.train_from, self.validation_from),
            "validation": (self.validation_from, self.train_to + timedelta(days=1)),
            "test": (self.test_from, self.test_to + timedelta(days=1)),
        }
        return {
            name: (event_time_ms >= start_of_day_ms(first)) & (event_time_ms < start_of_day_ms(end))
            for name, (first, end) in edges.items()
        }

    def to_dict(self) -> dict[str, str]:
        """Return the days in ISO format."""
        names = ("train_from", "validation_from", "train_to", "test_from", "test_to")
        return {name: getattr(self, name).isoformat() for name in names}


def choose_windows(
    first_ms: int,
    last_ms: int,
    label_delay_days: int,
    *,
    train_from: date | None = None,
    train_to: date | None = None,
    test_from: date | None = None,
    test_to: date | None = None,
) -> Windows:
    """Return the windows asked for; days left out are chosen from the data.

    Defaults: the test window is the last 15 % of the days, the train window ends a label delay
    before it and begins after the first 20 % of the days, which feed the features.

    Args:
        first_ms: Time of the first transaction, epoch milliseconds.
        last_ms: Time of the last one.
        label_delay_days: Days until fraud is known.
        train_from: First day of the train window.
        train_to: Last day of the train window.
        test_from: First day of the test window.
        test_to: Last day of the test window.

    Raises:
        ConfigurationError: Windows out of order or outside the data, or too few days.
    """
    first, last = day_of(first_ms), day_of(last_ms)
    days = (last - first).days + 1
    test_to = test_to or last
    test_from = test_from or test_to - timedelta(days=max(1, round(days * _TEST_SHARE)) - 1)
    train_to = train_to or test_from - timedelta(days=label_delay_days + 1)
    train_from = train_from or first + timedelta(days=round(days * _HISTORY_SHARE))
    if train_from < first or test_to > last:
        raise ConfigurationError(
            f"The windows reach from {train_from} to {test_to}, the data from {first} to {last}."
        )
    if (train_to - train_from).days + 1 < _LEAST_TRAIN_DAYS:
        raise ConfigurationError(
            f"The data from {first} to {last} ({days} days) leave a train window from {train_from} "
            f"to {train_to}, with a label delay of {label_delay_days} days before the test window "
            f"from {test_from}. Give more days, other windows, or a shorter --label-delay-days."
        )
    return Windows(train_from, train_to, test_from, test_to)
