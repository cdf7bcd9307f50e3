"""How far a route has got: whatever fails, all is told, and told twice only in bounds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagger.alert import Alert
from review.alerts.digest import MAX_DISTINCT, Digest
from review.alerts.routes import Route, decode_progress, encode_progress, route_id
from review.alerts.rules import AlertRule
from review.alerts.texts import of_digest


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def alert(number: int, **fields: Any) -> Alert:
    given_fields: dict[str, Any] = {
        "transaction_id": f"t{number}",
        "customer_id": "c",
        "event_time": 1_767_225_600_000 + number,
        "amount": float(number),
        "decision": "decline",
        "decision_source": "model",
    }
    return Alert(**given_fields | fields)


def route(clock: Clock, **fields: Any) -> Route:
    made = Route(AlertRule("all", ["duty"], **fields), "duty", clock)
    made.assign(0, 0)
    return made


def test_burst_then_one_in_an_interval() -> None:
    clock, sent = Clock(), 0
    limited = route(clock, burst=3, digest_every_s=60)
    for second in range(600):  # one alert a second for ten minutes
        clock.now_s = second
        limited.add(0, second, alert(second), "critical", second)
        if limited.due:
            limited.take()
            limited.delivered()
            sent += 1
    assert 3 + 600 / 60 - 1 <= sent <= 3 + 600 / 60
    clock.now_s += 3_600  # quiet again
    assert limited.due
    limited.take()
    limited.delivered()
    limited.add(0, 600, alert(600), "critical", 0)
    assert limited.due


def test_what_fails_waits_again_and_goes_out_as_one() -> None:
    limited = route(Clock(), burst=1)
    for offset in range(3):
        limited.add(0, offset, alert(offset), "critical", offset)
    assert limited.take().count == 3
    limited.add(0, 3, alert(3), "warning", 3)
    assert limited.waiting == 4
    assert limited.done(0, 4) == 0
    limited.failed()
    assert limited.due  # the token is back
    again = limited.take()
    assert (again.count, list(again.stamps_ms), again.severity) == (4, [0, 1, 2, 3], "critical")
    limited.delivered()
    assert limited.done(0, 4) == 4


@pytest.mark.parametrize("metadata", [None, "", "{}", "theirs", "[1]", '{"x":"y"}', '{"x":-3}'])
def test_metadata_of_others_counts_as_none(metadata: str | None) -> None:
    assert decode_progress(7, metadata, "x") == 7
    assert decode_progress(-1001, metadata, "x") == 0


class World:
    """One partition, read by two routes that succeed, fail and crash."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = wanted
        self.told: dict[str, list[int]] = {"a": [], "b": []}
        self.unsure: dict[str, set[int]] = {"a": set(), "b": set()}
        self.committed: tuple[int, str] = (0, "")
        self.start()

    def start(self) -> None:
        """Begin at what is committed."""
        self.under_way: dict[str, list[int]] = {}
        self.position = self.committed[0]
        self.routes = {}
        for name in ("a", "b"):
            made = Route(AlertRule(name, ["duty"], burst=1_000), "duty", Clock())
            made.assign(0, decode_progress(*self.committed, route_id(name, "duty")))
            self.routes[name] = made

    def read(self) -> None:
        if self.position < len(self.wanted):
            for name in self.wanted[self.position]:
                told = alert(self.position)
                self.routes[name].add(0, self.position, told, "critical", self.position)
            self.position += 1

    def take(self) -> None:
        for name, one in self.routes.items():
            if one.due:
                self.under_way[name] = list(one.take().stamps_ms)

    def yes(self) -> None:
        for name, numbers in self.under_way.items():
            self.told[name] += numbers
            self.unsure[name] |= set(numbers)
            self.routes[name].delivered()
        self.under_way = {}

    def no(self) -> None:
        for name in self.under_way:
            self.routes[name].failed()
        self.under_way = {}

    def commit(self) -> None:
        self.committed = encode_progress(self.routes.values(), 0, self.position)
        assert len(self.committed[1]) < 100
        self.unsure = {"a": set(), "b": set()}

    def crash(self) -> None:
        """What was told and not committed may come again: that is the bound."""
        for name, numbers in self.unsure.items():
            self.told[name] = [n for n in self.told[name] if n not in numbers]
        self.unsure = {"a": set(), "b": set()}
        self.start()


STEPS = st.lists(st.sampled_from(["read", "take", "yes", "no", "commit", "crash"]), max_size=80)


@given(st.lists(st.sampled_from(["a", "b", "ab", ""]), min_size=1, max_size=12), STEPS)
def test_nothing_is_lost_and_only_the_uncommitted_comes_twice(
    wanted: list[str], steps: list[str]
) -> None:
    world = World(wanted)
    for step in steps:
        getattr(world, step)()
    while world.position < len(wanted):
        world.read()
    for _ in range(2):  # what is under way, then what waits
        world.yes()
        world.take()
    world.yes()
    for name, numbers in world.told.items():
        assert sorted(numbers) == [i for i in range(len(wanted)) if name in wanted[i]]


def test_a_digest_is_bounded_and_says_what_it_counts() -> None:
    digest = Digest()
    for number in range(3 * MAX_DISTINCT):
        digest.add(
            alert(number, terminal_id=f"m{number}", currency="EUR", country="FR", channel="ecom"),
            "critical",
            number,
        )
    assert len(digest.counts["terminal_id"]) == MAX_DISTINCT + 1
    assert digest.counts["terminal_id"]["others"] == 2 * MAX_DISTINCT
    text = of_digest(digest, "all", "https://desk/{transaction_id}")
    assert text.title == "3,000 flagged payments (3,000 declined), 4,498,500.00 EUR"
    assert "Countries: FR 3,000" in text.body
    assert text.body.index("t2999") < text.body.index("t2998") < text.body.index("t2997")
    assert "https://desk/t2999" in text.body
    assert "t2990" in text.body
    assert "t2989" not in text.body


def test_an_id_cannot_forge_a_line() -> None:
    digest = Digest()
    digest.add(alert(1, transaction_id="a\nRule: none\r\n", channel="e\ncom"), "critical", 0)
    text = of_digest(digest, "all")
    assert "\n" not in text.title
    assert [line for line in text.body.splitlines() if line.startswith("Rule:")] == ["Rule: all"]
