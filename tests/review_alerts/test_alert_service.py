"""`flagger alerts run` on real Kafka, a mail server and webhooks: at once, bounded, not lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email import message_from_bytes
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from deploy.local.server import free_ports
from flagger.health import Health
from loadtest.observe import metric_values
from review.alerts.metrics import AlertMetrics
from review.alerts.receivers import apprise_transport
from review.alerts.rules import load_alert_rules
from review.alerts.service import AlertService

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

BURST, EVERY_S = 3, 1


def write_rules(folder: Path, receivers: tuple[str, ...] = ("hook",), more: str = "") -> Path:
    file = folder / "alerts.toml"
    tables = "".join(f'[receiver.{name}]\nurl_env = "URL_{name.upper()}"\n' for name in receivers)
    names = ", ".join(f'"{name}"' for name in receivers)
    rule = f'[[rule]]\nname = "all"\nreceivers = [{names}]\nburst = {BURST}\n'
    file.write_text(f"{more}\n{tables}{rule}digest_every_s = {EVERY_S}\n")
    return file


def wait_until(done: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


class Running:
    """A service in this process."""

    def __init__(self, alerts: Any, file: Path, urls: dict[str, str], instance: str = "0") -> None:
        self.metrics = AlertMetrics()
        self.health = Health({"partitions": "none yet"})
        self._stop = threading.Event()
        transports = {name: apprise_transport(name, url) for name, url in urls.items()}
        self._service = AlertService(
            alerts.settings.model_copy(update={"instance": instance}),
            load_alert_rules(file),
            transports,
            self.metrics,
            keep_going=lambda: not self._stop.is_set(),
            health=self.health,
        )
        self._thread = threading.Thread(target=self._service.run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def value(self, name: str, receiver: str) -> float:
        found = self.metrics.registry.get_sample_value(name, {"receiver": receiver})
        return found or 0.0


def test_told_at_once_by_mail_and_webhook(
    alerts: Any, hook: Any, mail: Any, tmp_path: Path
) -> None:
    file = write_rules(
        tmp_path, ("hook", "mail"), 'desk_url = "https://desk.example/?case={transaction_id}"'
    )
    (port,) = free_ports(1)
    process = alerts.start(
        file,
        port=port,
        URL_HOOK=f"json://user:S3CRETWORD@127.0.0.1:{hook.port}/T0K3N1234",
        URL_MAIL=f"mailto://127.0.0.1:{mail.port}/?from=flagger@example.com&to=duty@example.com",
    )
    page = f"http://127.0.0.1:{port}"
    wait_until(lambda: process.running and "telling" in process.tail())
    alerts.send(1, amount=1_234.5)
    wait_until(lambda: bool(hook.told and mail.told))
    assert hook.told[0]["title"] == "DECLINE 1,234.50 EUR, ecom, FR"
    assert hook.told[0]["type"] == "failure"
    body = hook.told[0]["message"]
    assert "reaches the decline threshold" in body
    assert "https://desk.example/?case=t0" in body
    assert "c0" not in body  # no customer leaves the house
    message = message_from_bytes(mail.told[0])
    assert str(make_header(decode_header(message["Subject"]))) == hook.told[0]["title"]
    wait_until(
        lambda: (
            metric_values(f"{page}/metrics", "flagger_alerts_delivered_total", "receiver")
            == {"hook": 1, "mail": 1}
        )
    )
    counts = metric_values(f"{page}/metrics", "flagger_alerts_delivery_seconds_count", "receiver")
    assert counts == {"hook": 1, "mail": 1}
    with urlopen(f"{page}/readyz") as answer:
        assert answer.status == 200
    process.stop()
    log = alerts.log.read_text()
    assert "S3CRETWORD" not in log
    assert "T0K3N1234" not in log


def test_ten_thousand_flags_are_few_messages_and_all_are_counted(
    alerts: Any, hook: Any, tmp_path: Path
) -> None:
    n, hook.delay_s = 10_000, 0.01
    service = Running(alerts, write_rules(tmp_path), {"hook": f"json://127.0.0.1:{hook.port}/"})
    try:
        start_s = time.monotonic()
        alerts.send(n)
        wait_until(lambda: bool(hook.alerts >= n))
        took_s = time.monotonic() - start_s
        assert hook.alerts == n
        assert len(hook.told) <= BURST + took_s / EVERY_S + 1
        last = hook.told[-1]
        assert "Channels: ecom" in last["message"]
        assert "declined" in last["title"]
        delivered = "flagger_alerts_delivery_seconds_count"
        wait_until(lambda: service.value(delivered, "hook") == n)
    finally:
        service.stop()


def test_a_receiver_that_was_down_gets_one_digest_and_the_other_nothing_twice(
    alerts: Any, hook: Any, mail: Any, tmp_path: Path
) -> None:
    file = write_rules(tmp_path, ("hook", "mail"))
    urls = {
        "hook": f"json://127.0.0.1:{hook.port}/",
        "mail": f"mailto://127.0.0.1:{mail.port}/?from=a@example.com&to=b@example.com",
    }
    hook.status = 503
    service = Running(alerts, file, urls)
    try:
        alerts.send(1)
        wait_until(lambda: len(mail.told) == 1 and hook.refused >= 1)
        alerts.send(49)
        wait_until(lambda: service.value("flagger_alerts_delivered_total", "mail") == 50)
        assert "receiver hook" in service.health.reasons
    finally:
        service.stop()
    mails, hook.status = len(mail.told), 200
    service = Running(alerts, file, urls)  # a restart, after the outage
    try:
        wait_until(lambda: bool(hook.told))
        wait_until(lambda: not service.health.reasons)
        time.sleep(1.5 * EVERY_S)
    finally:
        service.stop()
    assert [message["title"].split(",")[0] for message in hook.told] == [
        "50 flagged payments (50 declined)"
    ]
    assert len(mail.told) == mails
    service = Running(alerts, file, urls)  # everything is committed
    try:
        alerts.send(1)
        wait_until(lambda: len(mail.told) == mails + 1 and len(hook.told) == 2)
    finally:
        service.stop()
    assert hook.told[1]["title"].startswith("DECLINE")


def test_killed_with_alerts_that_wait_for_their_digest(
    alerts: Any, hook: Any, tmp_path: Path
) -> None:
    file = write_rules(tmp_path)
    file.write_text(file.read_text().replace("digest_every_s = 1", "digest_every_s = 3600"))
    url = {"URL_HOOK": f"json://127.0.0.1:{hook.port}/"}
    process = alerts.start(file, **url)
    for told in range(1, BURST + 1):
        alerts.send(1)
        wait_until(lambda told=told: len(hook.told) == told)  # type: ignore[misc]
    alerts.send(40)
    time.sleep(1.5)  # they are read, counted, and must not be committed
    assert len(hook.told) == BURST
    process.kill()
    alerts.start(file, **url)
    wait_until(lambda: bool(hook.alerts == BURST + 40))
    time.sleep(0.5)
    assert hook.alerts == BURST + 40


def test_killed_before_the_receiver_said_yes_tells_that_message_once_more(
    alerts: Any, hook: Any, tmp_path: Path
) -> None:
    file, url = write_rules(tmp_path), {"URL_HOOK": f"json://127.0.0.1:{hook.port}/"}
    process = alerts.start(file, **url)
    alerts.send(1)
    wait_until(lambda: len(hook.told) == 1)
    time.sleep(1.0)  # this one is committed
    hook.answers_after_s = 30.0
    alerts.send(1)
    wait_until(lambda: len(hook.told) == 2)
    process.kill()  # it has the message, and we do not know
    hook.answers_after_s = 0.0
    process = alerts.start(file, **url)
    wait_until(lambda: len(hook.told) == 3)
    process.stop()
    assert [m["message"].split(",")[0] for m in hook.told] == [
        "Transaction t0",
        "Transaction t1",
        "Transaction t1",
    ]


def test_a_second_process_takes_its_share_and_nothing_is_told_twice(
    alerts: Any, hook: Any, tmp_path: Path
) -> None:
    file, urls = write_rules(tmp_path), {"hook": f"json://127.0.0.1:{hook.port}/"}
    services = [Running(alerts, file, urls, "a")]
    try:
        alerts.send(100)
        wait_until(lambda: bool(hook.alerts))
        services.append(Running(alerts, file, urls, "b"))
        for _ in range(15):  # while partitions change hands
            alerts.send(20)
        wait_until(lambda: not any(service.health.reasons for service in services))
        alerts.send(100)
        wait_until(lambda: bool(hook.alerts >= 500))
        time.sleep(1.5 * EVERY_S)
    finally:
        for service in services:
            service.stop()
    assert hook.alerts == 500
    shares = [service.value("flagger_alerts_delivered_total", "hook") for service in services]
    assert sum(shares) == 500
    assert min(shares) >= 50


def test_what_is_no_alert_is_passed_over(alerts: Any, hook: Any, tmp_path: Path) -> None:
    from confluent_kafka import Producer

    from flagger.kafka import producer_config

    producer = Producer(producer_config(alerts.settings))
    for value in (b"", b"{}", b'{"transaction_id":7}', b"\xff"):
        producer.produce(alerts.settings.alerts_topic, value, partition=0)
    assert producer.flush(30) == 0
    producer.close()
    alerts.send(1, partition=0)
    service = Running(alerts, write_rules(tmp_path), {"hook": f"json://127.0.0.1:{hook.port}/"})
    try:
        wait_until(lambda: bool(hook.told))
        assert service.metrics.registry.get_sample_value("flagger_alerts_unreadable_total") == 4
    finally:
        service.stop()
    assert hook.alerts == 1


def test_heartbeat_and_silence(alerts: Any, hook: Any, tmp_path: Path, monkeypatch: Any) -> None:
    heart = type(hook)()
    monkeypatch.setenv("HEART", f"http://127.0.0.1:{heart.port}/beat")
    more = (
        '[heartbeat]\nurl_env = "HEART"\nevery_s = 1\n[silence]\nreceivers = ["hook"]\nafter_s = 1'
    )
    service = Running(
        alerts, write_rules(tmp_path, more=more), {"hook": f"json://127.0.0.1:{hook.port}/"}
    )
    try:
        wait_until(lambda: len(heart.told) >= 2 and len(hook.told) == 1)
        assert hook.told[0]["title"].startswith("No decision for")
        assert "No transaction arrived either" in hook.told[0]["message"]
        hook.status = 500
        alerts.send(1)
        wait_until(lambda: bool(service.health.reasons))
        time.sleep(0.2)
        beats = len(heart.told)
        time.sleep(1.6)
        assert len(heart.told) <= beats  # a receiver is away: the dead man lets go
    finally:
        service.stop()
        heart.close()
