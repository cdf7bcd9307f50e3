"""The compiled scanner against the authority, and what each bad message is told."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flagger.errors import BadMessageError
from flagger.features.batch import CATEGORY_FIELDS
from flagger.features.hashing import key_of
from flagger.wire.decode import decode_transactions
from flagger.wire.messages import parse_label, parse_transaction
from flagger.wire.scan import SPANS, scan_transactions

NOW_MS = 1_767_225_600_000
GOOD: dict[str, Any] = {
    "transaction_id": "t1",
    "event_time": 1_700_000_000_000,
    "customer_id": "c1",
    "terminal_id": "m1",
    "amount": 12.34,
    "channel": "pos",
    "country": "GB",
}


def message(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def scans_plainly(raw: bytes) -> bool:
    plain = np.zeros(1, dtype=np.bool_)
    scan_transactions(
        np.frombuffer(raw, dtype=np.uint8),
        np.array([0, len(raw)]),
        (946_684_800_000, NOW_MS + 86_400_000),
        np.zeros((1, 2 * SPANS), dtype=np.int64),
        np.zeros((1, 7), dtype=np.uint64),
        np.zeros(1, dtype=np.int64),
        np.zeros(1),
        plain,
    )
    return bool(plain[0])


def test_a_plain_message_takes_the_compiled_path() -> None:
    assert scans_plainly(message())
    assert scans_plainly(message(amount=0))  # an account verification
    assert scans_plainly(message(extra="kept", other=5, third=True, nothing=None, country=None))


def test_rfc_3339_and_epoch_milliseconds_are_the_same_moment() -> None:
    texts = ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20.000999Z"]
    decoded = decode_transactions(
        [message(event_time=t) for t in [GOOD["event_time"], *texts]], NOW_MS
    )
    assert not decoded.bad
    assert set(decoded.transactions.event_time_ms.tolist()) == {GOOD["event_time"]}


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        (b"", None, "not valid JSON"),
        (b"{", None, "not valid JSON"),
        (b"\xff\xfe{}", None, "not valid JSON"),
        (b"[]", None, "Expected `object`"),
        (message(amount=None), "amount", "Expected `float`"),
        (message(amount="5"), "amount", "Expected `float`"),
        (message(amount=-5), "amount", "between 0 and"),
        (message(amount=1e12), "amount", "between 0 and 1e+09"),
        (message().replace(b"12.34", b"NaN"), None, "not valid JSON"),
        (message().replace(b"12.34", b"1e999"), None, ""),
        (message(transaction_id=""), "transaction_id", "is empty"),
        (message(customer_id=7), "customer_id", "Expected `str`"),
        (message(customer_id="x" * 129), "customer_id", "129 bytes"),
        (message(event_time=1_700_000_000), "event_time", "seconds instead of"),
        (message(event_time=9_999_999_999_999), "event_time", "in the future"),
        (message(event_time="2023-11-14T22:13:20"), "event_time", "with a zone"),
        (message(event_time=True), "event_time", "Expected"),
        (message(channel="x" * 65), "channel", "65 bytes"),
        (message(schema_version=2), "schema_version", "2 is not known; this release reads 1"),
        (message(schema_version="1"), "schema_version", "Expected `int`"),
        (message(padding="x" * 1_000_000), None, "the limit is 65,536"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "amount"}).encode(), None, "`amount`"),
    ],
)
def test_each_bad_message_is_kept_with_its_reason(
    raw: bytes, field: str | None, words: str
) -> None:
    decoded = decode_transactions([message(), raw, message(transaction_id="t2")], NOW_MS)
    assert decoded.source.tolist() == [0, 2]
    [(place, error)] = decoded.bad
    assert place == 1
    assert words in str(error)
    if field:
        assert error.field == field


def test_every_field_reaches_its_column_and_span() -> None:
    odd = {
        "transaction_id": 't"ü\n',
        "customer_id": "c\\1",
        "amount": 0.1,
        "merchant_category": "5411",
    }
    decoded = decode_transactions([message(**odd), message()], NOW_MS)
    transactions = decoded.transactions
    assert transactions.transaction_key.tolist() == [key_of('t"ü\n'), key_of("t1")]
    assert transactions.customer_key.tolist() == [key_of("c\\1"), key_of("c1")]
    assert transactions.amount.tolist() == [0.1, 12.34]
    order = {name: i for i, name in enumerate(CATEGORY_FIELDS)}
    assert transactions.category_keys[0, order["merchant_category"]] == key_of("5411")
    assert transactions.category_keys[1, order["merchant_category"]] == 0
    text = decoded.text.tobytes()
    start, end = decoded.spans[0, :2]
    assert json.loads(b'"' + text[start:end] + b'"') == 't"ü\n'
    assert text[decoded.spans[1, 6] : decoded.spans[1, 7]] == b"12.34"


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 2_000_000_000_000),
    st.floats(allow_nan=True),
    st.decimals(0, 2_000_000, places=2, allow_nan=False).map(float),
    st.text(max_size=12),
    st.just("2024-02-29T01:02:03.456Z"),
    st.lists(st.integers(), max_size=2),
)
names = st.sampled_from(
    [*GOOD, "currency", "merchant_category", "note", "decision", "schema_version"]
)


@settings(max_examples=400, deadline=None, print_blob=True)
@given(
    st.dictionaries(names, values, max_size=4),
    st.sampled_from([None, ",", "}", '"', "0", "\\", " ", "e5", "-"]),
    st.integers(0, 200),
    st.booleans(),
)
def test_whatever_the_scanner_accepts_the_authority_reads_the_same(
    changes: dict[str, Any], noise: str | None, place: int, spaced: bool
) -> None:
    separators = (" , ", " : ") if spaced else (",", ":")
    text = json.dumps({**GOOD, **changes}, separators=separators)
    if noise is not None:
        text = text[:place] + noise + text[place:]
    raw = text.encode()
    try:
        expected = parse_transaction(raw, NOW_MS)
    except BadMessageError:
        assert not scans_plainly(raw)
        assert decode_transactions([raw], NOW_MS).bad
        return
    decoded = decode_transactions([raw], NOW_MS)
    assert not decoded.bad
    got = decoded.transactions
    assert got.event_time_ms[0] == expected.event_time_ms
    assert got.amount[0] == expected.amount
    assert got.transaction_key[0] == key_of(expected.transaction_id)
    assert got.customer_key[0] == key_of(expected.customer_id)
    assert got.terminal_key[0] == key_of(expected.terminal_id)
    for i, name in enumerate(CATEGORY_FIELDS):
        value = getattr(expected, name)
        assert got.category_keys[0, i] == (key_of(value) if value else 0)


def test_labels_name_the_transaction_they_confirm() -> None:
    label = {"transaction_id": "t1", "is_fraud": True, "source": "desk", "labelled_at": NOW_MS}
    whole = {**label, "terminal_id": "m1", "event_time": GOOD["event_time"]}
    assert parse_label(json.dumps(whole).encode(), NOW_MS).is_fraud
    with pytest.raises(BadMessageError, match="terminal_id"):
        parse_label(json.dumps(label).encode(), NOW_MS)
