"""The message on the alerts topic."""

from __future__ import annotations

import msgspec
import pytest

from flagger.alert import Alert, encode_alert, parse_alert
from flagger.errors import BadMessageError
from flagger.wire.messages import Decision

DECISION = Decision(
    transaction_id="t1",
    customer_id="c1",
    event_time=1_790_000_000_000,
    amount=12.5,
    decision="review",
    decision_source="model",
    score=0.7,
    reasons=["why"],
    reason_codes=["score"],
)


def test_an_alert_is_the_decision_with_the_transactions_place() -> None:
    transaction = {
        "transaction_id": "t1",
        "terminal_id": 'm"1',
        "channel": "ecom",
        "country": None,
        "decision": {"terminal_id": "no"},
        "other": [1, {"channel": "no"}],
    }
    raw = encode_alert(msgspec.json.encode(DECISION), msgspec.json.encode(transaction))
    alert = parse_alert(raw)
    assert (alert.terminal_id, alert.channel, alert.country) == ('m"1', "ecom", None)
    assert alert.merchant_category is None
    assert msgspec.json.decode(raw, type=Decision) == DECISION  # older readers see what they knew


def test_alerts_of_earlier_releases_are_read() -> None:
    alert = parse_alert(msgspec.json.encode(DECISION))
    assert isinstance(alert, Alert)
    assert alert.terminal_id == ""


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "not valid JSON"),
        (b"[]", "Expected `object`"),
        (b'{"transaction_id": 1}', "transaction_id"),
        (msgspec.json.encode({**msgspec.to_builtins(DECISION), "transaction_id": ""}), "is empty"),
        (b" " * 200_000, "limit"),
        (b"\xff", "not valid JSON"),
    ],
)
def test_what_is_no_alert(raw: bytes, said: str) -> None:
    with pytest.raises(BadMessageError, match=said):
        parse_alert(raw)
