"""The whole way in a real browser: transaction, streamer, case store, page, decision, label.

And on from the label, into the features of the next payment.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from urllib.request import urlopen

import pytest
from playwright.sync_api import Locator, Page, TimeoutError, expect

from flagger.features import FEATURE_NAMES
from flagger.features.hashing import key_of
from flagger.models import live_version, load_version
from loadtest.desk_world import DAY_MS, DeskWorld
from loadtest.offline import LogReplay

pytestmark = pytest.mark.stack

FLAGS = 5
ON_THE_DESK_S = 2.0
"""From before the transaction is written until its row is seen."""
ROUNDS = 3
"""All flags of one round must be there in time. Of 50 on two cores that other tests kept busy (load
12), three took longer, 2.5 s at most; the median was 1.1 s. A desk that is slow passes no round."""
LogIn = Callable[..., Page]


def row(page: Page, transaction_id: str) -> Locator:
    return page.locator(f'tr[data-id="{transaction_id}"]')


def seconds_to_see(desk: DeskWorld, page: Page, number: int, i: int) -> float:
    """Pay, and wait for the row; only the first round's names are plain."""
    name = f"flag{i}" if number == 0 else f"again{number}-{i}"
    sent_s = time.monotonic()
    desk.pay(name, customer_id=f"c{i}", amount=300.0 + i)
    row(page, name).wait_for()
    return time.monotonic() - sent_s


def test_from_transaction_to_label(desk: DeskWorld, log_in: LogIn) -> None:
    with urlopen(f"{desk.url}/") as answer:  # without a login there is the form only
        assert answer.url.endswith("/login")
    desk.pay("first")  # compiles kernels, opens connections
    ann, bob = log_in("ann"), log_in("bob")
    row(ann, "first").wait_for()

    rounds: list[list[float]] = []
    while not rounds or max(rounds[-1]) > ON_THE_DESK_S:
        assert len(rounds) < ROUNDS, rounds
        rounds.append([seconds_to_see(desk, ann, len(rounds), i) for i in range(FLAGS)])

    # Ann opens a case by mouse, Bob the same one by its address; both reach for it.
    row(ann, "flag2").locator(".amount").click()
    expect(ann.get_by_text("Why it was flagged")).to_be_visible()
    expect(ann.get_by_text("302.00 EUR").first).to_be_visible()
    bob.goto(f"{desk.url}/?case=flag2")
    claim = bob.get_by_role("button", name="Claim")
    expect(claim).to_be_enabled()
    ann.keyboard.press("t")
    expect(ann.get_by_text("claimed · ann")).to_be_visible()
    with suppress(TimeoutError):  # Bob's page knows already, and has taken the button away
        claim.click(timeout=2_000)
    expect(bob.get_by_text("claimed · ann")).to_be_visible()
    expect(bob.get_by_role("button", name="Confirm fraud")).to_be_disabled()

    ann.get_by_placeholder("Goes with the next button").fill("did not pay <b>this</b>")
    ann.get_by_role("button", name="Confirm fraud").click()
    expect(bob.get_by_text("fraud · ann")).to_be_visible()
    expect(bob.get_by_text("did not pay <b>this</b>")).to_be_visible()
    desk.wait_for_labels("m1", [True])
    assert [label.transaction_id for label in desk.labels("m1")] == ["flag2"]

    # Several at once: ticked rows stay theirs while others arrive above them.
    ann.goto(desk.url)
    for name in ("flag0", "flag1"):
        row(ann, name).locator("input").click()
    desk.pay("costly", amount=90_000.0, customer_id="c77")
    row(ann, "costly").wait_for()
    expect(row(ann, "costly")).to_have_class(re.compile("fresh"))
    expect(ann.get_by_text("2 selected")).to_be_visible()
    ann.get_by_role("button", name="Dismiss").click()
    expect(row(ann, "flag0")).to_have_count(0)
    expect(row(ann, "flag1")).to_have_count(0)
    expect(row(ann, "costly")).to_have_count(1)
    desk.wait_for_labels("m1", [True, False, False])
    assert {label.transaction_id for label in desk.labels("m1")[1:]} == {"flag0", "flag1"}

    # What another filter brings is not new, and says so: nothing flashes.
    ann.get_by_text("Decided", exact=True).click()
    row(ann, "flag2").wait_for()
    expect(ann.locator("tr.fresh")).to_have_count(0)


def of(replay: LogReplay, transaction_id: str) -> tuple[str, float]:
    """Return a transaction's features in a replay: their fingerprint, and the terminal's frauds."""
    place = replay.key.tolist().index(key_of(transaction_id))
    frauds = replay.rows[place, FEATURE_NAMES.index("terminal_fraud_count_7d")]
    return f"{int(replay.hashes[place]):016x}", float(frauds)


def test_a_click_changes_the_terminals_features_once_the_delay_is_over(
    desk: DeskWorld, log_in: LogIn
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
    ann = log_in("ann")
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
