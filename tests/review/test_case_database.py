"""The case store's database: its layout, its migrations, and addresses that lead nowhere."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, text

from flagger.errors import CaseStoreError, ConfigurationError
from review.database import layouts, migrate, open_engine, require_layout
from review.store import CaseStore, Flag
from review.tables import Base

MakeFlag = Callable[..., Flag]


def test_the_migrations_make_what_the_code_expects(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
    found, needed = layouts(engine)
    assert found == needed


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    errors: list[Exception] = []

    def work() -> None:
        engine = open_engine(database_url)
        try:
            migrate(engine)
        except Exception as error:
            errors.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    engine = open_engine(database_url)
    require_layout(engine)
    engine.dispose()


def test_a_postgres_without_this_layout_is_refused(postgres: str) -> None:
    engine = open_engine(f"{postgres}/template1")
    with pytest.raises(ConfigurationError, match="flagger desk migrate"):
        require_layout(engine)
    engine.dispose()


def test_a_database_that_is_away_is_our_error_without_the_password() -> None:
    engine = open_engine("postgresql://desk:very-secret@127.0.0.1:1/desk")
    with pytest.raises(CaseStoreError, match=r"127\.0\.0\.1:1") as caught:
        CaseStore(engine).count_waiting_labels()
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "without a file"),
        ("mysql://x/y", "CASE_STORE_URL"),
        ("not a url", "CASE_STORE_URL cannot be used"),
    ],
)
def test_urls_that_cannot_be(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        open_engine(url)


def test_a_case_cannot_be_stored_where_nothing_can_be_written(
    engine: Engine, flag: MakeFlag
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE cases RENAME TO gone"))
    with pytest.raises(CaseStoreError, match="failed"):
        CaseStore(engine).add([flag(1)], now_ms=0)
