"""What counts as sent when Kafka takes some labels of a round and not others."""

from __future__ import annotations

import pytest

from review.relay import _unbroken


@pytest.mark.parametrize(
    ("delivered", "sent"),
    [
        ({1, 2, 3}, [1, 2, 3]),
        ({1, 3}, [1]),  # 3 goes again after 2: a correction must not end up before what it corrects
        ({2, 3}, []),
        (set[int](), []),
    ],
)
def test_a_label_counts_with_all_before_it(delivered: set[int], sent: list[int]) -> None:
    assert _unbroken([1, 2, 3], delivered) == sent
