"""Brings a database to the tables that this version knows. Migrations only go up: back is by backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from formgate_server.storage.sql.engine import open_database

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

_SCRIPTS = "formgate_server.storage.sql:migrations"


def head() -> str:
    """Return the newest revision that this version knows."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
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

    Raises UnavailableError where the database is away.
    """
    database = open_database(url)
    try:
        async with database.writing() as connection:
            await connection.run_sync(_upgrade)
    finally:
        await database.close()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    return config


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _upgrade(connection: Connection) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
