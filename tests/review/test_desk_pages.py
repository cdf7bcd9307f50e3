"""The pages as they are read: two widths, light and dark; a case with the payments around it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Literal

import pytest
from playwright.sync_api import Locator, Page, expect

from loadtest.desk_world import SAFE_TERMINAL, DeskWorld

pytestmark = pytest.mark.stack

LogIn = Callable[..., Page]


def row(page: Page, transaction_id: str) -> Locator:
    return page.locator(f'tr[data-id="{transaction_id}"]')


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 1920])
def test_nothing_is_cut_off(
    desk: DeskWorld, log_in: LogIn, width: int, scheme: Literal["light", "dark"]
) -> None:
    name = f"seen-{width}-{scheme}"
    desk.pay(name, amount=12_345.67, customer_id=name)
    page = log_in("ann", width=width, scheme=scheme)
    row(page, name).wait_for()
    fits(page, scheme)
    page.goto(f"{desk.url}/?case={name}")
    expect(page.get_by_text("Notes and trail")).to_be_visible()
    expect(page.get_by_role("button", name="Confirm fraud")).to_be_visible()
    fits(page, scheme)
    page.goto(f"{desk.url}/figures")
    expect(page.get_by_text("Precision this week")).to_be_visible()
    fits(page, scheme)


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


def test_a_case_shows_the_approved_payments_around_it(desk: DeskWorld, log_in: LogIn) -> None:
    desk.pay("groceries", customer_id="shopper", terminal_id=SAFE_TERMINAL, amount=31.5)
    desk.pay("petrol", customer_id="shopper", terminal_id=SAFE_TERMINAL, amount=62.25)
    desk.pay("earlier", customer_id="shopper", terminal_id="odd", amount=480.0)
    desk.pay("shown", customer_id="shopper", terminal_id="odd", amount=490.0)
    ann = log_in("ann")
    row(ann, "shown").wait_for()
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
