"""Brings a database to the tables that this version knows. Migrations only go up: back is by backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select

from formgate_server.storage.sql.dialect import alone, is_forgetful
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.tables import compatibility

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

_LOCK_SECONDS = 60.0
_SCRIPTS = "formgate_server.storage.sql:migrations"


def head() -> str:
    """Return the newest revision that this version knows."""
    revision = _scripts().get_current_head()
    assert revision is not None  # noqa: S101 - there is one
    return revision


async def current(url: str | URL) -> str | None:
    """Return the database's revision; None: it has no tables of ours. Raises UnavailableError where it is away."""
    database = open_database(url)
    try:
        async with database.reading() as connection:
            return await connection.run_sync(_current)
    finally:
        await database.close()


async def upgrade(url: str | URL) -> None:
    """Bring the database to ``head``: wholly or, should a migration fail, not at all. Of two at once, one waits.

    One of a later version, that this one may use, is left as it is. Raises UnfitDatabaseError where it may not, and
    UnavailableError where the database is away, or tables are in use for too long.
    """
    database = open_database(url)
    try:
        async with database.migrating() as connection:
            await alone(connection, "migrate", seconds=_LOCK_SECONDS)
            await connection.run_sync(_upgrade)
    finally:
        await database.close()


async def check(database: Database) -> None:
    """See to it that this version may use the database, and that it is durable. Raises UnfitDatabaseError."""
    await check_tables(database)
    async with database.reading() as connection:
        if await is_forgetful(connection):
            raise UnfitDatabaseError("the database may lose what it has acknowledged: turn synchronous_commit on")


async def check_tables(database: Database) -> None:
    """See to it that this version may use the database. Raises UnfitDatabaseError."""
    async with database.reading() as connection:
        await connection.run_sync(_check)


def _check(connection: Connection) -> None:
    revision = _current(connection)
    if revision == head() or _is_later(connection, revision):
        return
    raise UnfitDatabaseError(
        f"the database is of revision {revision or 'none'}, and this version of {head()}:"
        " `formgate migrate` brings it there"
    )


def _is_later(connection: Connection, revision: str | None) -> bool:
    """Tell whether later migrations were here, which only added. Raises UnfitDatabaseError where they took away."""
    if revision is None or revision in _known():
        return False
    if connection.scalar(select(compatibility.c.oldest)) in _known():
        return True
    raise UnfitDatabaseError(
        f"the database is of revision {revision}, and this version of {head()}: that is a later version's, without what"
        " this one needs; start one of those"
    )


def _known() -> set[str]:
    return {script.revision for script in _scripts().walk_revisions()}


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    if _is_later(connection, _current(connection)):
        return
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
