"""The desk's figures, by hand on a few cases, and the words that people read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date
from pathlib import Path
from typing import get_args
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import Engine

from flagger.settings import ENV_PREFIX
from review.app.context import get_desk
from review.app.surroundings import around
from review.app.words import duration, headline_reasons, money, place, state_words
from review.database import migrate
from review.history import Entity
from review.kpis import compute_figures
from review.life import Analyst, CaseLife
from review.queries import CaseQueries
from review.store import CaseStore, Flag

NOW_MS = 1_790_000_000_000  # 2026-09-21T14:13:20Z
MINUTE_MS, DAY_MS = 60_000, 86_400_000
MakeFlag = Callable[..., Flag]


def act(engine: Engine, action: str, case: str, who: str, at_ms: int) -> None:
    outcome = CaseLife(engine, lambda: at_ms, DAY_MS).act(action, [case], Analyst(who))  # type: ignore[arg-type]
    assert outcome.done == [case]


def test_figures(engine: Engine, flag: MakeFlag) -> None:
    ages_ms = {1: 3 * DAY_MS, 2: 2 * DAY_MS, 3: DAY_MS, 4: 10 * DAY_MS, 5: 7 * MINUTE_MS, 6: 0}
    flags = [flag(i, age_ms=age, amount=100.0 * i, score=0.5) for i, age in ages_ms.items()]
    CaseStore(engine).add(flags, NOW_MS)
    flagged = {i: NOW_MS - age for i, age in ages_ms.items()}
    act(engine, "claim", "t1", "ann", flagged[1] + 2 * MINUTE_MS)
    act(engine, "confirm", "t1", "ann", flagged[1] + 4 * MINUTE_MS)
    act(engine, "dismiss", "t2", "bob", flagged[2] + 10 * MINUTE_MS)
    act(engine, "confirm", "t3", "ann", flagged[3] + 6 * MINUTE_MS)
    act(engine, "confirm", "t4", "bob", flagged[4] + 60 * MINUTE_MS)  # not this week
    figures = compute_figures(engine, lambda: NOW_MS, UTC)
    assert figures.waiting == 2
    assert figures.at_risk == pytest.approx(0.5 * 1_100)
    assert figures.oldest_s == 7 * 60
    assert figures.first_look.count == 4
    assert figures.first_look.median_s == 60 * (6 + 10) / 2
    assert figures.decision.median_s == 60 * (6 + 10) / 2
    assert figures.decision.p90_s == 60 * 60
    assert figures.precision == pytest.approx(2 / 3)
    assert figures.precision_of == 3
    assert figures.prevented == 400.0
    assert figures.by_analyst == {"ann": 2, "bob": 1}
    assert len(figures.days) == 14
    assert figures.days[-1].day == date(2026, 9, 21)
    counted = {
        d.day.day: (d.confirmed, d.dismissed) for d in figures.days if d.confirmed + d.dismissed
    }
    assert counted == {11: (1, 0), 18: (1, 0), 19: (0, 1), 20: (1, 0)}


def test_days_part_at_the_viewers_midnight(engine: Engine, flag: MakeFlag) -> None:
    CaseStore(engine).add([flag(1)], NOW_MS)
    act(engine, "dismiss", "t1", "ann", NOW_MS)  # 14:13 UTC, past midnight in Auckland
    figures = compute_figures(engine, lambda: NOW_MS, ZoneInfo("Pacific/Auckland"))
    assert figures.days[-1].day == date(2026, 9, 22)
    assert figures.days[-1].dismissed == 1


def test_an_empty_desk_has_figures_too(engine: Engine) -> None:
    figures = compute_figures(engine, lambda: NOW_MS, UTC)
    assert (figures.waiting, figures.oldest_s, figures.precision) == (0, None, None)
    assert figures.decision.median_s is None


def test_words(engine: Engine, flag: MakeFlag) -> None:
    assert money(1234.5, "EUR") == "1,234.50 EUR"
    assert [duration(s) for s in (None, -3, 59.4, 60, 3_725, 90_000)] == [
        "-", "0 s", "59 s", "1 min", "1 h 2 min", "1 d 1 h",
    ]  # fmt: skip
    CaseStore(engine).add(
        [flag(1), flag(2, channel=None, country=None, merchant_category=None)], NOW_MS
    )
    queries = CaseQueries(engine, lambda: NOW_MS)
    act(engine, "claim", "t1", "ann", NOW_MS)
    case, bare = queries.find_all(["t1", "t2"])
    assert (place(case), place(bare)) == ("ecom · DE · 5732", "unknown")
    assert headline_reasons(case) == "5 earlier transactions in the last hour"
    assert state_words(case, NOW_MS) == "claimed · ann"
    assert state_words(case, NOW_MS + DAY_MS) == "new"


def test_a_desk_without_valkey_shows_flags_and_says_so(
    tmp_path: Path, flag: MakeFlag, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'cases.db'}"
    monkeypatch.chdir(tmp_path)  # no embedded stack of the checkout
    monkeypatch.delenv(f"{ENV_PREFIX}VALKEY_URL", raising=False)
    monkeypatch.setenv(f"{ENV_PREFIX}CASE_STORE_URL", url)
    monkeypatch.setenv(f"{ENV_PREFIX}DESK_HISTORY_PAYMENTS", "0")
    desk = get_desk.__wrapped__()
    migrate(desk.engine)
    CaseStore(desk.engine).add([flag(i) for i in range(2)], NOW_MS)
    case = desk.queries.find("t1")
    assert case is not None
    for of in get_args(Entity):
        found = around(desk, case, of)
        assert [c.transaction_id for c in found.newest()] == ["t0"]
        assert "approved are not kept here" in found.note
    desk.engine.dispose()
