from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec
import pytest

from flagger.brakes import BRAKE_CODE
from flagger.reasons import SCORE_CODE
from flagger.wire.messages import parse_transaction
from loadtest.payments import (
    APPROVED,
    EXPLAINED,
    REPEAT_SHARE,
    UNEXPLAINED,
    Checked,
    PaymentMaker,
    Sent,
    check,
    stages_ms,
)

PAYMENT = Sent("t-1", b"{}")
REPEAT = Sent("t-1", b"{}", b'{"transaction_id":"t-1"}')


def answer(**changes: Any) -> bytes:
    good = {"transaction_id": "t-1", "decision": "review", "decision_source": "model", "score": 0.5}
    return msgspec.json.encode(good | changes)


def test_payments_are_what_the_gateway_takes() -> None:
    maker = PaymentMaker("test", seed=3)
    now_ms = time.time_ns() // 1_000_000
    read = [parse_transaction(maker.new().body, now_ms) for _ in range(2_000)]
    assert all(abs(t.event_time_ms - now_ms) < 60_000 for t in read)
    assert all(t.currency and t.merchant_category and t.channel and t.country for t in read)
    assert all(t.amount > 0 and t.decision is None for t in read)
    assert len({t.transaction_id for t in read}) == len(read)
    assert len({t.customer_id for t in read}) > 500
    assert len({t.terminal_id for t in read}) > 500
    assert len({t.amount for t in read}) > 500


def test_another_run_has_other_ids() -> None:
    assert PaymentMaker("a").new().transaction_id != PaymentMaker("b").new().transaction_id


def test_a_share_of_payments_by_a_few_busy_customers() -> None:
    maker = PaymentMaker("test", busy_share=0.2)
    now_ms = time.time_ns() // 1_000_000
    read = [parse_transaction(maker.new().body, now_ms) for _ in range(2_000)]
    payments = Counter(t.customer_id for t in read)
    busy = [n for customer, n in payments.items() if int(customer[1:]) < 40]
    assert len(busy) == 40
    assert sum(busy) / len(read) == pytest.approx(0.2, rel=0.2)
    assert len(payments) > 1_500


def test_some_answered_payments_come_again_unchanged() -> None:
    maker = PaymentMaker("test")
    asked = []
    for _ in range(5_000):
        payment = maker.next()
        asked.append(payment)
        if not payment.answer:
            maker.answered(payment, payment.transaction_id.encode())
    repeats = [payment for payment in asked if payment.answer]
    assert len(repeats) / len(asked) == pytest.approx(REPEAT_SHARE, rel=0.5)
    first = {payment.transaction_id: payment.body for payment in asked if not payment.answer}
    assert all(first[payment.transaction_id] == payment.body for payment in repeats)
    assert all(payment.answer == payment.transaction_id.encode() for payment in repeats)


def test_good_answers() -> None:
    told = {"reason_codes": ["score", "amount"], "model_version": "3"}
    assert check(200, answer(**told), PAYMENT) == Checked("", "model", EXPLAINED, "3")
    for codes in ([SCORE_CODE], [BRAKE_CODE, SCORE_CODE]):
        without = answer(**told | {"reason_codes": codes})
        assert check(200, without, PAYMENT) == Checked("", "model", UNEXPLAINED, "3")
    approval = answer(decision="approve", reason_codes=[], model_version="4")
    assert check(200, approval, PAYMENT) == Checked("", "model", APPROVED, "4")
    assert check(200, answer(decision_source="fallback"), PAYMENT) == Checked("", "fallback")
    # A repeat tells an earlier decision: it took no explanation now.
    repeat = Sent("t-1", b"{}", answer(**told))
    assert check(200, answer(**told), repeat) == Checked("", "model")


@pytest.mark.parametrize(
    ("status", "content", "payment", "fault"),
    [
        (0, b"", PAYMENT, "no answer"),
        (503, answer(), PAYMENT, "status 503"),
        (409, b"", REPEAT, "status 409"),
        (200, b"<html>", PAYMENT, "an answer without decision"),
        (200, b"\xff", PAYMENT, "an answer without decision"),
        (200, b'{"transaction_id":"t-1"}', PAYMENT, "an answer without decision"),
        (200, answer(transaction_id="t-2"), PAYMENT, "another transaction's answer"),
        (200, answer(decision="maybe"), PAYMENT, "unknown decision"),
        (200, answer(decision_source="luck"), PAYMENT, "unknown decision source"),
        (200, answer(), REPEAT, "a repeat answered differently"),
    ],
)
def test_bad_answers(status: int, content: bytes, payment: Sent, fault: str) -> None:
    assert check(status, content, payment).fault == fault


def test_server_timing_is_read() -> None:
    assert stages_ms("read;dur=0.010, state;dur=1.25, log;dur=12.000") == {
        "read": 0.01,
        "state": 1.25,
        "log": 12.0,
    }
    assert stages_ms("") == {}
