"""The case store in a backup: each table as JSON lines, from SQLite or PostgreSQL into either.

Logins are left out: a session that was ended since must not come to life again; users log in anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import msgspec
from sqlalchemy import Connection, Engine, Table, func, insert, select, text

from deploy.backup_files import CASE_FILES, Manifest, case_file
from flagger.errors import ConfigurationError, DataError
from flagger.settings import Settings
from review.database import layouts, mapped_errors, open_engine, require_layout
from review.tables import Base

__all__ = ["restored_cases", "write_cases"]

MAX_ROWS = 500
"""Rows in one statement and in memory at a time."""
_TABLES: dict[str, Table] = {file: Base.metadata.tables[name] for name, file in CASE_FILES.items()}
"""File -> table; cases first, as their events refer to them."""


def write_cases(settings: Settings, folder: Path) -> tuple[str, dict[str, int]]:
    """Write the case store as it stands at one moment, while the desk works.

    Returns:
        Its Alembic revision, and file -> rows in it.

    Raises:
        CaseStoreError: The database is away or refuses.
        ConfigurationError: Its layout is not this release's.
    """
    with _engine(settings) as engine:
        found, needed = layouts(engine)
        if found != needed:
            raise ConfigurationError(
                f"The case store has layout {found or 'none'}, this release backs up {needed}. Run "
                f"`flagger desk migrate` first, or back up with the release that runs the desk."
            )
        with mapped_errors(engine), engine.connect() as connection:
            _begin(connection, writes=False)
            counts = {
                file: _write(connection, table, folder / file) for file, table in _TABLES.items()
            }
    return needed, counts


@contextmanager
def restored_cases(settings: Settings, folder: Path, manifest: Manifest) -> Iterator[None]:
    """Bring the backup's cases into an empty store; they stay if what follows succeeds.

    One transaction: an error in the body undoes it, and the restore can be tried again.

    Raises:
        CaseStoreError: The database is away or refuses.
        ConfigurationError: A PostgreSQL has not this release's layout, or the store is not empty.
        DataError: The backup is of another layout, or its rows are not its tables' rows.
    """
    file = case_file(settings)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with _engine(settings) as engine:
        _require_same_layout(engine, folder, manifest)
        require_layout(engine)
        with mapped_errors(engine), engine.connect() as connection:
            _begin(connection, writes=True)
            _require_empty(connection)
            for name, table in _TABLES.items():
                _read(connection, table, folder / name)
            yield
            connection.commit()


@contextmanager
def _engine(settings: Settings) -> Iterator[Engine]:
    engine = open_engine(settings.case_store_url.get_secret_value())
    try:
        yield engine
    finally:
        engine.dispose()


def _begin(connection: Connection, *, writes: bool) -> None:
    """Begin a transaction that sees one moment; one that writes keeps other writers out."""
    if connection.dialect.name == "sqlite":  # its driver begins none for reading
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
    elif writes:
        names = ", ".join(table.name for table in _TABLES.values())
        connection.execute(text(f"LOCK TABLE {names} IN EXCLUSIVE MODE"))
    else:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))


def _write(connection: Connection, table: Table, path: Path) -> int:
    rows = connection.execute(
        select(table).order_by(*table.primary_key), execution_options={"yield_per": MAX_ROWS}
    )
    written = 0
    with path.open("wb") as file:
        for row in rows.mappings():
            file.write(msgspec.json.encode(dict(row)) + b"\n")
            written += 1
    return written


def _require_same_layout(engine: Engine, folder: Path, manifest: Manifest) -> None:
    _, needed = layouts(engine)
    if manifest.case_layout != needed:
        raise DataError(
            file=str(folder),
            problem=f"has cases of layout {manifest.case_layout}, this release's is {needed}",
            remedy=f"Restore with release {manifest.release}, then run `flagger desk migrate` with "
            f"this one.",
        )


def _require_empty(connection: Connection) -> None:
    for table in _TABLES.values():
        if connection.execute(select(table).limit(1)).first() is not None:
            where = connection.engine.url.render_as_string(hide_password=True)
            raise ConfigurationError(
                f"The case store {where} is not empty ({table.name}): two stores do not mix. Name "
                f"a new database in FLAGGER_CASE_STORE_URL; a PostgreSQL needs `flagger desk "
                f"migrate` once. The old one stays as it is."
            )


def _read(connection: Connection, table: Table, path: Path) -> None:
    decode = msgspec.json.Decoder(dict[str, object]).decode
    with path.open("rb") as file:
        while lines := list(islice(file, MAX_ROWS)):
            try:
                rows = [decode(line) for line in lines]
            except msgspec.DecodeError as error:
                raise DataError(
                    file=str(path), problem=f"is damaged: {error}", remedy="Use another backup."
                ) from error
            connection.execute(insert(table), rows)
    column = table.autoincrement_column
    if connection.dialect.name == "postgresql" and column is not None:
        # Rows brought their numbers; the sequence has to go on behind them.
        last = connection.scalar(select(func.max(column)))
        if last is not None:
            connection.execute(
                select(func.setval(func.pg_get_serial_sequence(table.name, column.name), last))
            )
