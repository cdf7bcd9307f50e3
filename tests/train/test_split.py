"""Windows: whole days with both ends, in order, and with the label delay between them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import numpy as np
import pytest

from flagger.errors import ConfigurationError
from train.split import Windows, choose_windows

WINDOWS = Windows(date(2018, 5, 1), date(2018, 6, 15), date(2018, 6, 23), date(2018, 7, 9))


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def test_both_days_of_a_window_are_in_it() -> None:
    times = [
        "2018-04-30T23:59:59.999",
        "2018-05-01T00:00:00.000",
        "2018-06-08T23:59:59.999",
        "2018-06-09T00:00:00.000",
        "2018-06-15T23:59:59.999",
        "2018-06-16T00:00:00.000",
        "2018-06-22T23:59:59.999",
        "2018-06-23T00:00:00.000",
        "2018-07-09T23:59:59.999",
        "2018-07-10T00:00:00.000",
    ]
    masks = WINDOWS.masks(np.array([ms(t) for t in times], dtype=np.int64))
    assert np.flatnonzero(masks["fit"]).tolist() == [1, 2]
    assert np.flatnonzero(masks["validation"]).tolist() == [3, 4]
    assert np.flatnonzero(masks["test"]).tolist() == [7, 8]


def test_validation_is_the_last_part_of_the_train_window() -> None:
    assert WINDOWS.train_days == 46
    assert WINDOWS.validation_from == date(2018, 6, 9)  # 7 of 46 days
    short = Windows(date(2018, 5, 1), date(2018, 5, 2), date(2018, 5, 3), date(2018, 5, 3))
    assert short.validation_from == date(2018, 5, 2)


def test_gap_shorter_than_the_label_delay_is_a_leak() -> None:
    assert WINDOWS.gap_days == 7
    WINDOWS.require_gap(7)
    close = Windows(date(2018, 5, 1), date(2018, 6, 16), date(2018, 6, 23), date(2018, 7, 9))
    with pytest.raises(ConfigurationError, match=r"is 6 days.*delay of 7.*--allow-leakage"):
        close.require_gap(7)
    close.require_gap(6)


@pytest.mark.parametrize(
    ("days", "problem"),
    [
        ((1, 1, 10, 11), "at least 2 days"),
        ((1, 5, 11, 10), "at least one"),
        ((1, 10, 10, 11), "must be judged on later days"),
    ],
)
def test_windows_out_of_order(days: tuple[int, int, int, int], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        Windows(*(date(2018, 5, day) for day in days))


def test_defaults_leave_history_gap_and_test() -> None:
    first, last = ms("2018-04-01T00:00:31"), ms("2018-07-09T23:59:24")
    windows = choose_windows(first, last, 7)
    assert windows == Windows(
        date(2018, 4, 21), date(2018, 6, 17), date(2018, 6, 25), date(2018, 7, 9)
    )
    windows.require_gap(7)


def test_defaults_fill_in_what_is_not_given() -> None:
    first, last = ms("2018-04-01T00:00:31"), ms("2018-07-09T23:59:24")
    windows = choose_windows(first, last, 3, test_from=date(2018, 7, 1))
    assert windows.train_to == date(2018, 6, 27)
    assert windows.gap_days == 3


def test_too_few_days_and_days_outside_the_data() -> None:
    first, last = ms("2018-04-01T00:00:00"), ms("2018-04-10T00:00:00")
    with pytest.raises(ConfigurationError, match=r"10 days.*--label-delay-days"):
        choose_windows(first, last, 7)
    assert choose_windows(first, last, 1).gap_days == 1
    with pytest.raises(ConfigurationError, match=r"reach from 2018-03-01"):
        choose_windows(first, last, 1, train_from=date(2018, 3, 1))


def test_every_length_of_data_gives_valid_windows_or_a_clear_error() -> None:
    first = datetime(2018, 4, 1, tzinfo=UTC)
    refused = []
    for days in range(1, 200):
        last = first + timedelta(days=days - 1)
        try:
            windows = choose_windows(ms(first.isoformat()), ms(last.isoformat()), 7)
        except ConfigurationError as error:
            refused.append((days, str(error)))
            continue
        windows.require_gap(7)
        assert first.date() <= windows.train_from
        assert windows.test_to == last.date()
    assert [days for days, _ in refused] == list(range(1, len(refused) + 1))
    assert len(refused) < 15
    assert all("--label-delay-days" in text for _, text in refused)
