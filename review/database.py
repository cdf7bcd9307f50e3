"""The case store's database: opened, brought to this release's layout, its errors made ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from flagger.errors import CaseStoreError, ConfigurationError

__all__ = ["layouts", "mapped_errors", "migrate", "open_engine", "require_layout", "transaction"]

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of its set-up at each look

_BUSY_MS = 10_000
"""How long a writer waits for another one on SQLite, and for a connection on PostgreSQL."""
_POOL = 8
"""Connections of one process; further threads wait for one."""
_MIGRATION_LOCK = 0x666C6167
"""Number of PostgreSQL's advisory lock under which one process at a time migrates ("flag")."""


def open_engine(url: str) -> Engine:
    """Return an engine for a SQLite file or a PostgreSQL database; nothing is connected yet.

    Raises:
        ConfigurationError: The URL is none, or names another kind of database.
    """
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        kind = parsed.get_backend_name()
        if kind == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ConfigurationError(
                    "FLAGGER_CASE_STORE_URL names SQLite without a file: sqlite:///cases.db."
                )
            engine = create_engine(
                parsed, pool_size=_POOL, connect_args={"timeout": _BUSY_MS / 1000}
            )
            event.listen(engine, "connect", _prepare_sqlite)
            return engine
        if kind == "postgresql":
            return create_engine(
                parsed,
                pool_size=_POOL,
                pool_pre_ping=True,
                connect_args={"connect_timeout": _BUSY_MS // 1000},
            )
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise ConfigurationError(
            f"FLAGGER_CASE_STORE_URL cannot be used ({type(error).__name__}). It reads "
            f"sqlite:///cases.db or postgresql://user:password@host:5432/database."
        ) from None  # the cause repeats the URL, which may hold a password
    raise ConfigurationError(f"FLAGGER_CASE_STORE_URL: {kind} is not SQLite or PostgreSQL.")


def _prepare_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # readers and a writer do not wait for each other
    # A case must be on disk before Kafka's offset moves past its alert.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", "review:migrations")
    config.attributes["connection"] = connection
    return config


def layouts(engine: Engine) -> tuple[str | None, str]:
    """Return the layout that the database has (None: empty) and the one this release needs."""
    needed = ScriptDirectory.from_config(_config()).get_current_head() or ""
    with mapped_errors(engine), engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision(), needed


def migrate(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to this release's layout; return the layouts before and after.

    Several processes may call it at once: one works, the others wait and find nothing to do.

    Raises:
        CaseStoreError: The database is away or refuses.
    """
    before, needed = layouts(engine)
    if before == needed:
        return before, needed
    with mapped_errors(engine), engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK}
            )
        command.upgrade(_config(connection), "head")
        connection.commit()
    return before, needed


def require_layout(engine: Engine) -> None:
    """Migrate a SQLite file; refuse a PostgreSQL database that `flagger desk migrate` must see.

    Raises:
        CaseStoreError: The database is away.
        ConfigurationError: Its layout is not this release's.
    """
    if engine.dialect.name == "sqlite":
        migrate(engine)
        return
    found, needed = layouts(engine)
    if found != needed:
        raise ConfigurationError(
            f"The case store has layout {found or 'none'}, this release needs {needed}. Run "
            f"`flagger desk migrate` once, as a user who may create tables."
        )


@contextmanager
def mapped_errors(engine: Engine) -> Iterator[None]:
    """Turn the library's errors into CaseStoreError, without statements and their values.

    StaleDataError passes: somebody else changed the row first, which is no trouble of the database.
    """
    try:
        yield
    except StaleDataError:
        raise
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        where = engine.url.render_as_string(hide_password=True)
        first = (str(cause).strip().splitlines() or ["no reason given"])[0]
        raise CaseStoreError(
            f"The case store {where} failed: {type(cause).__name__}: {first}. Is the database "
            f"running, and may this user write to it?"
        ) from error


@contextmanager
def transaction(engine: Engine) -> Iterator[Session]:
    """Give a session whose work is committed at the end, or undone by an exception.

    Raises:
        CaseStoreError: The database is away or refuses.
    """
    with mapped_errors(engine), Session(engine, expire_on_commit=False) as session:
        yield session
        session.commit()
