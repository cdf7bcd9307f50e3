"""Cases go into a backup and come out of it the same, from either database into either.

Stands here, not beside the other tests of backups, for the case store's PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import valkey
from pydantic import SecretStr
from sqlalchemy import inspect, text

from deploy.backup import back_up
from deploy.backup_files import MANIFEST
from deploy.local.stack import LocalStack
from deploy.restore import restore
from flagger.errors import ConfigurationError, DataError, StateStoreError
from flagger.settings import Settings
from flagger.state.store import StateStore
from review.database import migrate, open_engine, transaction
from review.life import Analyst, CaseLife
from review.queries import CaseQueries
from review.store import CaseStore, Flag
from review.tables import Base, Login

NOW_MS = 1_790_000_000_000
ANN = Analyst("ann")
MakeFlag = Callable[..., Flag]


@pytest.fixture(scope="module")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("valkey")
    with LocalStack(home, services=frozenset({"valkey"})) as running:
        yield running.addresses.valkey_url


@pytest.fixture
def settings(valkey_url: str, database_url: str) -> Settings:
    """A Valkey that has marks, and an empty database of either kind."""
    forget(valkey_url)
    store = StateStore(valkey_url)
    store.write_marks("flagger", {"0": 40})
    store.close()
    return Settings(
        valkey_url=valkey_url, consumer_group="flagger", case_store_url=SecretStr(database_url)
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def other_url(
    request: pytest.FixtureRequest, new_database: Callable[[str, Path], str], tmp_path: Path
) -> str:
    """A second empty database of either kind."""
    return new_database(request.param, tmp_path / "new" / "cases.db")


def forget(valkey_url: str) -> None:
    client = valkey.Valkey.from_url(valkey_url)
    client.flushdb()
    client.close()  # type: ignore[no-untyped-call]


def work(url: str, flag: MakeFlag) -> None:
    """Store cases and decide some, as the desk does; many enough for several statements."""
    engine = open_engine(url)
    migrate(engine)
    store, life = CaseStore(engine), CaseLife(engine, lambda: NOW_MS, 900_000)
    for first in range(0, 1_200, 400):
        store.add(
            [flag(i, amount=i / 3, score=0.1 + i / 7_000) for i in range(first, first + 400)],
            NOW_MS,
        )
    store.add([flag(9_999, customer_id="Zoë “quoted” \\ 東京", score=None, currency="")], NOW_MS)
    life.act("confirm", ["t1", "t2"], ANN, "card was stolen\nsecond line")
    life.act("dismiss", ["t3"], ANN)
    life.act("claim", ["t4"], ANN)
    store.mark_sent([1], NOW_MS)
    with transaction(engine) as session:
        session.add(Login(token_sha256="0" * 64, name="ann", expires_at_ms=NOW_MS))
    engine.dispose()


def contents(url: str) -> dict[str, list[tuple[object, ...]]]:
    """Return every row of every table, in the order of its key."""
    engine = open_engine(url)
    with engine.connect() as connection:
        found = {
            table.name: [
                tuple(row)
                for row in connection.execute(table.select().order_by(*table.primary_key))
            ]
            for table in Base.metadata.sorted_tables
        }
    engine.dispose()
    for rows in found.values():
        rows.sort(key=lambda row: repr(row[0]))  # databases sort text by rules of their own
    return found


def at(settings: Settings, url: str) -> Settings:
    return settings.model_copy(update={"case_store_url": SecretStr(url)})


def test_cases_come_back_and_work_goes_on(
    settings: Settings, database_url: str, other_url: str, flag: MakeFlag, tmp_path: Path
) -> None:
    work(database_url, flag)
    before = contents(database_url)
    made = back_up(settings, tmp_path / "backup")
    assert made.counts["cases.jsonl"] == 1_201
    assert made.counts["labels_outbox.jsonl"] == 3
    forget(settings.valkey_url or "")
    engine = open_engine(other_url)
    if engine.dialect.name == "postgresql":
        with pytest.raises(ConfigurationError, match="flagger desk migrate"):
            restore(at(settings, other_url), tmp_path / "backup")
        migrate(engine)
    assert restore(at(settings, other_url), tmp_path / "backup") == made
    after = contents(other_url)
    assert before.pop("logins")
    assert after.pop("logins") == []
    assert after == before
    life = CaseLife(engine, lambda: NOW_MS, 900_000)
    assert life.act("confirm", ["t4", "t5"], ANN).done == ["t4", "t5"]  # numbers go on
    assert [label.id for label in CaseStore(engine).waiting_labels(9)] == [2, 3, 4, 5]
    queries = CaseQueries(engine, lambda: NOW_MS)
    assert [event.note for event in queries.events("t1") if event.action == "confirm"] == [
        "card was stolen\nsecond line"
    ]
    odd = queries.find("t9999")
    assert odd is not None
    assert (odd.customer_id, odd.score, odd.currency) == ("Zoë “quoted” \\ 東京", None, None)
    engine.dispose()


def test_a_store_with_cases_is_refused_and_stays(
    settings: Settings, database_url: str, flag: MakeFlag, tmp_path: Path
) -> None:
    work(database_url, flag)
    back_up(settings, tmp_path / "backup")
    before = contents(database_url)
    forget(settings.valkey_url or "")
    with pytest.raises(ConfigurationError, match=r"is not empty \(cases\).*FLAGGER_CASE_STORE_URL"):
        restore(settings, tmp_path / "backup")
    assert contents(database_url) == before
    back_to = StateStore(settings.valkey_url or "")
    assert back_to.read_marks("flagger") == {}
    back_to.close()


def test_a_restore_that_fails_at_valkey_leaves_no_cases(
    settings: Settings, database_url: str, flag: MakeFlag, tmp_path: Path
) -> None:
    work(database_url, flag)
    back_up(settings, tmp_path / "backup")
    empty_tables(database_url)
    with pytest.raises(ConfigurationError, match="Valkey database is not empty"):
        restore(settings, tmp_path / "backup")
    away = settings.model_copy(update={"valkey_url": "valkey://127.0.0.1:1/0"})
    with pytest.raises(StateStoreError):
        restore(away, tmp_path / "backup")
    assert not any(contents(database_url).values())
    forget(settings.valkey_url or "")
    restore(settings, tmp_path / "backup")
    assert len(contents(database_url)["cases"]) == 1_201


def empty_tables(url: str) -> None:
    engine = open_engine(url)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    engine.dispose()


def test_another_layout_is_refused_on_both_ways(
    settings: Settings, database_url: str, flag: MakeFlag, tmp_path: Path
) -> None:
    work(database_url, flag)
    back_up(settings, tmp_path / "backup")
    path = tmp_path / "backup" / MANIFEST
    manifest = msgspec.json.decode(path.read_bytes())
    manifest["case_layout"] = "0000"
    path.write_bytes(msgspec.json.encode(manifest))
    empty_tables(database_url)
    forget(settings.valkey_url or "")
    with pytest.raises(DataError, match=r"layout 0000.*Restore with release"):
        restore(settings, tmp_path / "backup")
    assert not any(contents(database_url).values())
    engine = open_engine(database_url)
    assert inspect(engine).has_table("alembic_version")
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    engine.dispose()
    store = StateStore(settings.valkey_url or "")
    store.write_marks("flagger", {"0": 40})
    store.close()
    with pytest.raises(ConfigurationError, match=r"layout 0000.*flagger desk migrate"):
        back_up(settings, tmp_path / "second")
    assert not (tmp_path / "second").exists()
