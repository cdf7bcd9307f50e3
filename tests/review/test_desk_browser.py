"""The whole way in a real browser: transaction, streamer, case store, page, decision, label.

Chromium is the system's own (Debian: chromium); Playwright drives it and downloads none.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal
from urllib.request import urlopen

import msgspec
import pytest
from confluent_kafka import Producer
from playwright.sync_api import Browser, Page, expect, sync_playwright

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.features import FEATURE_NAMES, FeatureContract
from flagger.features.hashing import key_of
from flagger.kafka import producer_config
from flagger.models import live_version, load_version
from flagger.policies import set_policy
from flagger.settings import ENV_PREFIX, Settings
from flagger.wire.messages import Decision, parse_label
from loadtest.offline import LogReplay, replay_log
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.topic_reader import Records, read_topic
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack

TOPICS = ("transactions", "decisions", "alerts", "labels", "activity", "dead_letter")
PASSWORD = "a long password"
FLAGS = 5
DAY_MS = 86_400_000
RULEBOOK = """
version = "1"
[[list]]
name = "safe shops"
action = "allow"
field = "terminal_id"
values = ["safe"]
reason = "known to be safe"
"""
"""Payments there are approved."""


@dataclass
class Desk:
    settings: Settings
    url: str
    producer: Producer

    def pay(
        self, transaction_id: str, *, days_ago: float = 0, partition: int = -1, **values: object
    ) -> None:
        payment = {
            "transaction_id": transaction_id,
            "event_time": time.time_ns() // 1_000_000 - int(days_ago * DAY_MS),
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
            partition,
        )
        self.producer.flush(10)

    def labels(self) -> list[tuple[str, bool, str]]:
        values = read_topic(self.settings, self.settings.labels_topic).values
        labels = [parse_label(value, time.time_ns() // 1_000_000) for value in values]
        return [(label.transaction_id, label.is_fraud, label.terminal_id) for label in labels]

    def wait_for_labels(self, terminal: str, outcomes: list[bool]) -> None:
        deadline_s = time.monotonic() + 10
        while [fraud for _, fraud, where in self.labels() if where == terminal] != outcomes:
            assert time.monotonic() < deadline_s, self.labels()
            time.sleep(0.1)

    def features_hash(self, transaction_id: str) -> str:
        """Return the fingerprint of the features that the streamer decided on."""
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            for value in read_topic(self.settings, self.settings.decisions_topic).values:
                decision = msgspec.json.decode(value, type=Decision)
                if decision.transaction_id == transaction_id:
                    return decision.feature_hash
            time.sleep(0.1)
        pytest.fail(f"{transaction_id} was not decided")

    def replay(self, contract: FeatureContract, *, labels: bool) -> LogReplay:
        """Compute the log's features offline, as if all labels or none had been known."""
        known = read_topic(self.settings, self.settings.labels_topic) if labels else None
        log = read_topic(self.settings, self.settings.transactions_topic)
        return replay_log(log, known or Records.concat([]), contract)


@pytest.fixture(scope="module")
def desk(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Streamer, desk consumer and pages as processes; nearly every payment is flagged."""
    tmp_path = tmp_path_factory.mktemp("desk")
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
            f"{ENV_PREFIX}RULEBOOK": str(tmp_path / "rulebook.toml"),
        },
    )
    (tmp_path / "rulebook.toml").write_text(RULEBOOK)
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail("No Chromium on PATH (Debian: chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


def log_in(
    browser: Browser,
    url: str,
    name: str,
    *,
    width: int = 1280,
    scheme: Literal["light", "dark"] = "light",
) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": width * 5 // 8}, color_scheme=scheme
    )
    page = context.new_page()
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
    desk.wait_for_labels("m1", [True])
    assert desk.labels() == [("flag2", True, "m1")]

    # Several at once: ticked rows stay theirs while others arrive above them.
    ann.goto(desk.url)
    for name in ("flag0", "flag1"):
        row(ann, name).locator("input").click()
    desk.pay("costly", amount=90_000.0, customer_id="c77")
    wait_for(ann, "costly")
    expect(row(ann, "costly")).to_have_class(re.compile("fresh"))
    expect(ann.get_by_text("2 selected")).to_be_visible()
    ann.get_by_role("button", name="Dismiss").click()
    expect(row(ann, "flag0")).to_have_count(0)
    expect(row(ann, "flag1")).to_have_count(0)
    expect(row(ann, "costly")).to_have_count(1)
    desk.wait_for_labels("m1", [True, False, False])
    assert set(desk.labels()[1:]) == {("flag0", False, "m1"), ("flag1", False, "m1")}

    # What another filter brings is not new, and says so: nothing flashes.
    ann.get_by_text("Decided", exact=True).click()
    wait_for(ann, "flag2")
    expect(ann.locator("tr.fresh")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 1920])
def test_nothing_is_cut_off(
    desk: Desk, browser: Browser, width: int, scheme: Literal["light", "dark"]
) -> None:
    name = f"seen-{width}-{scheme}"
    desk.pay(name, amount=12_345.67, customer_id=name)
    page = log_in(browser, desk.url, "ann", width=width, scheme=scheme)
    wait_for(page, name)
    fits(page, scheme)
    page.goto(f"{desk.url}/?case={name}")
    expect(page.get_by_text("Notes and trail")).to_be_visible()
    expect(page.get_by_role("button", name="Confirm fraud")).to_be_visible()
    fits(page, scheme)
    page.goto(f"{desk.url}/figures")
    expect(page.get_by_text("Precision this week")).to_be_visible()
    fits(page, scheme)
    page.context.close()


def fits(page: Page, scheme: str) -> None:
    """Nothing that is read or pressed leaves the window or its column; colours suit the scheme."""
    cut = """() => [...document.querySelectorAll(
        "button, label, .d-head *, .d-strip *, .d-facts *, [data-testid=stMetricValue]")]
      .filter((e) => { const box = e.getBoundingClientRect();
        return box.width && (box.right > innerWidth || box.left < 0
          || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX === "hidden"); })
      .map((e) => e.textContent)"""
    assert page.evaluate(cut) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    amounts = page.locator("td.amount:visible").all()
    assert all(a.evaluate("e => e.scrollWidth <= e.clientWidth") for a in amounts)
    colours = "getComputedStyle(document.querySelector('[data-testid=stApp]'))"
    for colour, is_light in (("backgroundColor", scheme == "light"), ("color", scheme == "dark")):
        parts = re.findall(r"[\d.]+", page.evaluate(f"{colours}.{colour}"))
        assert (sum(map(float, parts[:3])) > 3 * 128) == is_light, (colour, parts)


def of(replay: LogReplay, transaction_id: str) -> tuple[str, float]:
    """Return a transaction's features in a replay: their fingerprint, and the terminal's frauds."""
    place = replay.key.tolist().index(key_of(transaction_id))
    frauds = replay.rows[place, FEATURE_NAMES.index("terminal_fraud_count_7d")]
    return f"{int(replay.hashes[place]):016x}", float(frauds)


def test_a_click_changes_the_terminals_features_once_the_delay_is_over(
    desk: Desk, browser: Browser
) -> None:
    """Of a payment 9 days ago the outcome counts for one now, not for one 3 days after it."""
    repository = desk.settings.model_repository
    contract = load_version(repository, live_version(repository)).contract
    delay_days = contract.label_delay_ms / DAY_MS
    assert 3 < delay_days < 8, "the days of this test must lie on both sides of it"
    numbers = iter(range(1_000))

    def pay_now(days_ago: float = 0.0) -> str:
        """Pay at the terminal as a new customer; one partition keeps the order."""
        name = f"probe{next(numbers)}"
        desk.pay(
            name, days_ago=days_ago, terminal_id="risky", customer_id=f"of {name}", partition=0
        )
        return name

    def pay_until_known() -> str:
        """Pay until the streamer decides by all labels that are on the topic."""
        deadline_s = time.monotonic() + 10
        while True:
            name = pay_now()
            expected, _ = of(desk.replay(contract, labels=True), name)
            if desk.features_hash(name) == expected:
                return name
            assert time.monotonic() < deadline_s, "the streamer does not know the label"

    desk.pay("case", days_ago=9, terminal_id="risky", customer_id="victim", partition=0)
    ann = log_in(browser, desk.url, "ann")
    ann.goto(f"{desk.url}/?case=case")
    confirm = ann.get_by_role("button", name="Confirm fraud")
    expect(confirm).to_be_enabled(timeout=15_000)
    unlabelled = pay_now()
    assert desk.features_hash(unlabelled) == of(desk.replay(contract, labels=False), unlabelled)[0]

    confirm.click()
    desk.wait_for_labels("risky", [True])
    after, before = pay_until_known(), pay_now(days_ago=6)
    known, unknown = (desk.replay(contract, labels=labels) for labels in (True, False))
    assert [of(known, after)[1], of(unknown, after)[1]] == [1, 0]
    assert of(known, after)[0] != of(unknown, after)[0]
    assert desk.features_hash(before) == of(known, before)[0] == of(unknown, before)[0]

    ann.goto(f"{desk.url}/?case=case")  # taken back: there was no fraud
    ann.get_by_role("button", name="Reopen").click()
    expect(ann.get_by_role("button", name="Dismiss")).to_be_enabled()
    ann.keyboard.press("d")
    desk.wait_for_labels("risky", [True, False])
    again = pay_until_known()
    assert of(desk.replay(contract, labels=True), again)[1] == 0


def test_a_case_shows_the_approved_payments_around_it(desk: Desk, browser: Browser) -> None:
    desk.pay("groceries", customer_id="shopper", terminal_id="safe", amount=31.5)
    desk.pay("petrol", customer_id="shopper", terminal_id="safe", amount=62.25)
    desk.pay("earlier", customer_id="shopper", terminal_id="odd", amount=480.0)
    desk.pay("shown", customer_id="shopper", terminal_id="odd", amount=490.0)
    ann = log_in(browser, desk.url, "ann")
    wait_for(ann, "shown")
    expect(row(ann, "groceries")).to_have_count(0)  # no case
    deadline_s = time.monotonic() + 10
    while True:
        ann.goto(f"{desk.url}/?case=shown")
        expect(ann.get_by_text("Amounts around it")).to_be_visible()
        tab = ann.get_by_role("tab", name="Customer (1 flagged, 2 not)")
        if tab.is_visible():
            break
        assert time.monotonic() < deadline_s, "the approved payments are not shown"
    expect(row(ann, "petrol").get_by_text("not flagged")).to_be_visible()
    expect(row(ann, "petrol").get_by_text("62.25 EUR")).to_be_visible()
    row(ann, "groceries").locator(".amount").click()  # it is no case: nothing opens
    expect(ann.get_by_text("490.00 EUR").first).to_be_visible()
    ann.get_by_role("tab", name="Terminal (1 flagged, 0 not)").click()
    row(ann, "earlier").locator(".amount").locator("visible=true").click()
    expect(ann.get_by_text("480.00 EUR").first).to_be_visible()
    expect(ann).to_have_url(f"{desk.url}/?case=earlier")
