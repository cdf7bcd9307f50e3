"""An hour of alerts waits on the topic while desk and alert service are away; then both catch up.

The alerts' own times lie an hour apart, and so do their messages' timestamps; nobody waits an hour.
2,000 transactions a second with 1 % flagged are 72,000 in an hour.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer
from sqlalchemy import func, select

from deploy.local.stack import LocalStack
from flagger.alert import Alert
from flagger.health import Health
from flagger.kafka import producer_config
from flagger.settings import Settings
from loadtest.own_topics import own_topic_names
from review.alerts.metrics import AlertMetrics
from review.alerts.receivers import apprise_transport
from review.alerts.rules import load_alert_rules
from review.alerts.service import AlertService
from review.consumer import DeskConsumer
from review.database import migrate, open_engine, transaction
from review.life import CaseLife
from review.metrics import DeskMetrics
from review.store import CaseStore, Flag
from review.tables import Case
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]

HOUR_MS = 3_600_000
BURST, EVERY_S = 2, 1
RULES = f"""
[receiver.hook]
url_env = "URL_HOOK"
[[rule]]
name = "all"
receivers = ["hook"]
burst = {BURST}
digest_every_s = {EVERY_S}
"""
HOUR_OF_FLAGS = 72_000
MakeFlag = Callable[..., Flag]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def settings(stack: LocalStack) -> Settings:
    name = f"hour-{uuid.uuid4().hex[:8]}"
    made = stack.settings().model_copy(
        update={
            **own_topic_names(name),
            "consumer_group": name,
            "alerts_group": f"{name}-alerts",
            "partitions": 2,
        }
    )
    ensure_topics(made)
    return made


class Flags:
    """Writes alerts, numbered on."""

    def __init__(self, settings: Settings, make: MakeFlag) -> None:
        self._settings, self._make = settings, make
        self.sent = 0

    def send(self, n: int, over_ms: int = 0) -> None:
        """Write n alerts whose transactions came evenly over the time that ends now."""
        producer = Producer(producer_config(self._settings))
        end_ms = now_ms()
        for k in range(n):
            at_ms = end_ms - over_ms + (k + 1) * over_ms // n
            number = self.sent + k
            alert: Alert = self._make(number, customer_id=f"c{number % 500}").alert
            alert.event_time = at_ms
            producer.produce(
                self._settings.alerts_topic,
                msgspec.json.encode(alert),
                alert.customer_id,
                timestamp=at_ms,
            )
            producer.poll(0)
        assert producer.flush(30) == 0
        producer.close()
        self.sent += n

    @property
    def ids(self) -> set[str]:
        return {f"t{i}" for i in range(self.sent)}


@pytest.fixture
def flags(settings: Settings, flag: MakeFlag) -> Flags:
    return Flags(settings, flag)


def wait_until(done: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.05)


class Desk:
    """The desk's consumer in a thread; each one is a restart."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.engine = open_engine(f"sqlite:///{folder / 'cases.db'}")
        migrate(self.engine)
        self.metrics = DeskMetrics()
        self._stop = threading.Event()
        consumer = DeskConsumer(
            settings,
            CaseStore(self.engine),
            CaseLife(self.engine, now_ms, 900_000),
            self.metrics,
            Health({}),
            keep_going=lambda: not self._stop.is_set(),
        )
        self._thread = threading.Thread(target=consumer.run)
        self._thread.start()

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"flagger_desk_{name}") or 0.0

    def count(self) -> int:
        with transaction(self.engine) as session:
            return session.scalar(select(func.count()).select_from(Case)) or 0

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.engine.dispose()


def test_the_desk_stores_each_flag_of_the_hour_once(
    settings: Settings, flags: Flags, tmp_path: Path
) -> None:
    n = HOUR_OF_FLAGS
    flags.send(3)
    desk = Desk(settings, tmp_path)
    wait_until(lambda: desk.count() == 3)
    desk.close()

    flags.send(n, over_ms=HOUR_MS)
    desk = Desk(settings, tmp_path)
    wait_until(lambda: desk.count() == 3 + n)
    with transaction(desk.engine) as session:
        assert set(session.scalars(select(Case.transaction_id))) == flags.ids
        first_ms, last_ms = session.execute(
            select(func.min(Case.flagged_at_ms), func.max(Case.flagged_at_ms))
        ).one()
    # A case is as old as its flag, not as its row: the analyst sees who has waited an hour.
    assert 0.99 * HOUR_MS < last_ms - first_ms < 1.1 * HOUR_MS
    wait_until(lambda: desk.value("oldest_new_seconds") > 3_500)
    desk.close()
    assert (desk.value("cases_stored_total"), desk.value("repeats_total")) == (n, 0)

    flags.send(1)
    desk = Desk(settings, tmp_path)
    wait_until(lambda: desk.count() == 4 + n)
    desk.close()
    assert (desk.value("cases_stored_total"), desk.value("repeats_total")) == (1, 0)


class Hook:
    """A webhook that keeps the titles of the messages it took."""

    def __init__(self) -> None:
        self.titles: list[str] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = msgspec.json.decode(self.rfile.read(int(self.headers["Content-Length"])))
                hook.titles.append(body["title"])
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def alerts(self) -> int:
        """How many alerts the messages tell of: a digest begins with their number."""
        firsts = [title.split()[0].replace(",", "") for title in self.titles]
        return sum(int(first) if first.isdigit() else 1 for first in firsts)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


class Alerting:
    """The alert service in a thread; each one is a restart."""

    def __init__(self, settings: Settings, folder: Path, hook: Hook) -> None:
        rules = folder / "alerts.toml"
        rules.write_text(RULES)
        self._stop = threading.Event()
        transports: dict[str, Any] = {"hook": apprise_transport("hook", hook.url)}
        service = AlertService(
            settings,
            load_alert_rules(rules),
            transports,
            AlertMetrics(),
            keep_going=lambda: not self._stop.is_set(),
        )
        self._thread = threading.Thread(target=service.run)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
def test_people_are_told_of_the_hour_in_few_messages_and_once(
    settings: Settings, flags: Flags, hook: Hook, tmp_path: Path
) -> None:
    n = HOUR_OF_FLAGS
    flags.send(3)
    service = Alerting(settings, tmp_path, hook)
    wait_until(lambda: hook.alerts == 3)
    service.close()
    before = len(hook.titles)

    flags.send(n, over_ms=HOUR_MS)
    start_s = time.monotonic()
    service = Alerting(settings, tmp_path, hook)
    wait_until(lambda: hook.alerts >= 3 + n)
    took_s = time.monotonic() - start_s
    service.close()
    assert hook.alerts == 3 + n
    assert len(hook.titles) - before <= BURST + took_s / EVERY_S + 1

    told = len(hook.titles)
    flags.send(1)
    service = Alerting(settings, tmp_path, hook)
    wait_until(lambda: hook.alerts >= 4 + n)
    time.sleep(1.5 * EVERY_S)  # a repeat would come now
    service.close()
    assert (hook.alerts, len(hook.titles) - told) == (4 + n, 1)
