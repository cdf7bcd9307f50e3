"""The sinks of `flagger bench alerts` read back what receivers are told, by mail and webhook."""

from __future__ import annotations

import time

import pytest

from flagger.alert import Alert
from loadtest.alert_sinks import MailSink, WebhookSink
from review.alerts.digest import Digest
from review.alerts.receivers import apprise_transport
from review.alerts.texts import of_digest


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # Apprise's mail, Python 3.11
@pytest.mark.parametrize("kind", [MailSink, WebhookSink])
@pytest.mark.parametrize("count", [1, 2, 60])
def test_every_transaction_of_a_message_is_found(
    kind: type[MailSink | WebhookSink], count: int
) -> None:
    digest = Digest(named=100)
    for number in range(count):
        alert = Alert(
            transaction_id=f"S7-{number:09d}",
            customer_id="c",
            event_time=1_767_225_600_000,
            amount=10.0 + number,
            decision="review",
            decision_source="model",
            reasons=["a reason, with a comma"],
            currency="EUR",
            channel=None if number % 2 else "ecom",
            terminal_id="m",
        )
        digest.add(alert, "warning", 0)
    sink = kind()
    try:
        before_ms = time.time() * 1000
        assert apprise_transport("sink", sink.url)(of_digest(digest, "all")) == ""
        (told,) = sink.told
        assert sorted(told.transaction_ids) == [f"S7-{number:09d}" for number in range(count)]
        assert before_ms <= told.at_ms <= time.time() * 1000
    finally:
        sink.close()
