"""The whole way in a real browser: transaction, streamer, case store, page, decision, label.

Chromium is the system's own (Debian: chromium); Playwright drives it and downloads none.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest
from confluent_kafka import Producer
from playwright.sync_api import Browser, Page, expect, sync_playwright

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.kafka import producer_config
from flagger.policies import set_policy
from flagger.settings import ENV_PREFIX, Settings
from flagger.wire.messages import parse_label
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.topic_reader import read_topic
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack

TOPICS = ("transactions", "decisions", "alerts", "labels", "activity", "dead_letter")
PASSWORD = "a long password"
FLAGS = 5


@dataclass
class Desk:
    settings: Settings
    url: str
    producer: Producer

    def pay(self, transaction_id: str, **values: object) -> None:
        payment = {
            "transaction_id": transaction_id,
            "event_time": time.time_ns() // 1_000_000,
            "customer_id": "c1",
            "terminal_id": "m1",
            "amount": 250.0,
            "currency": "EUR",
            "channel": "ecom",
            "country": "DE",
            **values,
        }
        self.producer.produce(
            self.settings.transactions_topic,
            msgspec.json.encode(payment),
            str(payment["customer_id"]),
        )
        self.producer.flush(10)

    def labels(self) -> list[tuple[str, bool, str]]:
        values = read_topic(self.settings, self.settings.labels_topic).values
        labels = [parse_label(value, time.time_ns() // 1_000_000) for value in values]
        return [(label.transaction_id, label.is_fraud, label.terminal_id) for label in labels]


@pytest.fixture
def desk(stack: LocalStack, tmp_path: Path) -> Iterator[Desk]:
    """Streamer, desk consumer and pages as processes; nearly every payment is flagged."""
    name = f"browser-{uuid.uuid4().hex[:8]}"
    repository = tmp_path / "model_repository"
    shutil.copytree(stack.model_repository, repository)
    set_policy(repository, review=1e-7, decline=0.999_999)
    server = stack.addresses.valkey_url.rsplit("/", 1)[0]
    settings = stack.settings().model_copy(
        update={f"{topic}_topic": f"{name}-{topic}" for topic in TOPICS}
        | {
            "consumer_group": name,
            "partitions": 2,
            "model_repository": repository,
            "valkey_url": f"{server}/11",
        }
    )
    ensure_topics(settings)
    names = [*(f"{topic}_topic" for topic in TOPICS), "consumer_group"]
    environment = environment_of(
        settings,
        {f"{ENV_PREFIX}{n.upper()}": str(getattr(settings, n)) for n in names}
        | {
            f"{ENV_PREFIX}CASE_STORE_URL": f"sqlite:///{tmp_path / 'cases.db'}",
            f"{ENV_PREFIX}DESK_USERS_FILE": str(tmp_path / "users.json"),
        },
    )
    for user in ("ann", "bob"):
        command = [sys.executable, "-m", "flagger", "desk", "add-user", user, "--password-stdin"]
        subprocess.run(command, env=environment, input=PASSWORD, text=True, check=True)
    ports = free_ports(3)
    commands = (
        ["stream", "--metrics-port", str(ports[0])],
        ["desk", "consume", "--metrics-port", str(ports[1])],
        ["desk", "serve", "--port", str(ports[2])],
    )
    paths = ("readyz", "readyz", "healthz")
    with ExitStack() as running:
        processes = []
        for i, command in enumerate(commands):
            process = FlaggerProcess(command, environment, tmp_path / f"{i}.log")
            running.callback(process.kill)
            processes.append(process)
        for process, port, path in zip(processes, ports, paths, strict=True):
            wait_for_url(f"http://127.0.0.1:{port}/{path}", process)
        producer = Producer(producer_config(settings))
        yield Desk(settings, f"http://127.0.0.1:{ports[2]}", producer)
        producer.close()
        for process in processes:
            process.stop()  # raises if one does not end well on a signal


@pytest.fixture
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail("No Chromium on PATH (Debian: chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def log_in(browser: Browser, url: str, name: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
    page.set_default_timeout(15_000)
    page.goto(url)
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", PASSWORD)
    page.click("button")
    expect(page.get_by_text("since the newest flag")).to_be_visible(timeout=15_000)
    return page


def row(page: Page, transaction_id: str) -> Any:
    return page.locator(f'tr[data-id="{transaction_id}"]')


def wait_for(page: Page, transaction_id: str) -> float:
    """Return when the row was there, monotonic seconds."""
    row(page, transaction_id).wait_for(state="visible")
    return time.monotonic()


def test_from_transaction_to_label(desk: Desk, browser: Browser) -> None:
    with urlopen(f"{desk.url}/") as answer:  # without a login there is the form only
        assert answer.url.endswith("/login")
    desk.pay("first")  # compiles kernels, opens connections
    ann, bob = log_in(browser, desk.url, "ann"), log_in(browser, desk.url, "bob")
    wait_for(ann, "first")

    seconds = []
    for i in range(FLAGS):
        sent_s = time.monotonic()
        desk.pay(f"flag{i}", customer_id=f"c{i}", amount=300.0 + i)
        seconds.append(wait_for(ann, f"flag{i}") - sent_s)
    assert statistics.median(seconds) < 2.0, seconds

    # Ann opens a case by mouse, Bob the same one by its address; both reach for it.
    row(ann, "flag2").locator(".amount").click()
    expect(ann.get_by_text("Why it was flagged")).to_be_visible()
    expect(ann.get_by_text("302.00 EUR").first).to_be_visible()
    bob.goto(f"{desk.url}/?case=flag2")
    claim = bob.get_by_role("button", name="Claim")
    expect(claim).to_be_enabled()
    ann.keyboard.press("t")
    expect(ann.get_by_text("claimed · ann")).to_be_visible()
    if claim.is_enabled():  # else Bob's page knows already
        claim.click()
    expect(bob.get_by_text("claimed · ann")).to_be_visible()
    expect(bob.get_by_role("button", name="Confirm fraud")).to_be_disabled()

    ann.get_by_placeholder("Goes with the next button").fill("did not pay <b>this</b>")
    ann.get_by_role("button", name="Confirm fraud").click()
    expect(bob.get_by_text("fraud · ann")).to_be_visible()
    expect(bob.get_by_text("did not pay <b>this</b>")).to_be_visible()
    deadline_s = time.monotonic() + 10
    while not desk.labels():
        assert time.monotonic() < deadline_s, "no label"
        time.sleep(0.1)
    assert desk.labels() == [("flag2", True, "m1")]

    # Several at once: ticked rows stay theirs while others arrive above them.
    ann.goto(desk.url)
    for name in ("flag0", "flag1"):
        row(ann, name).locator("input").click()
    desk.pay("costly", amount=90_000.0, customer_id="c77")
    wait_for(ann, "costly")
    expect(ann.get_by_text("2 selected")).to_be_visible()
    ann.get_by_role("button", name="Dismiss").click()
    expect(row(ann, "flag0")).to_have_count(0)
    expect(row(ann, "flag1")).to_have_count(0)
    expect(row(ann, "costly")).to_have_count(1)
    deadline_s = time.monotonic() + 10
    while len(desk.labels()) < 3:
        assert time.monotonic() < deadline_s, desk.labels()
        time.sleep(0.1)
    assert set(desk.labels()[1:]) == {("flag0", False, "m1"), ("flag1", False, "m1")}
