from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import DBAPIError

from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.tables import metadata
from tests.support.stores import account, database_url, opened, sqlite_stores


def schema(file: Path) -> dict[str, str]:
    """Return the SQL of each table and index, written in one way."""
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return {name: re.sub(r"\s+", " ", sql.replace("(", " ( ").replace(")", " ) ")) for name, sql in rows}


async def test_migrations_make_the_tables(tmp_path: Path) -> None:
    """From an empty file, all migrations together make what ``tables.py`` says, to the letter."""
    migrated, direct = tmp_path / "migrated.db", tmp_path / "direct.db"
    await migrate.upgrade(database_url(migrated))
    engine = create_engine(f"sqlite:///{direct}")
    metadata.create_all(engine)
    engine.dispose()
    made = schema(migrated)
    del made["alembic_version"]
    assert made == schema(direct)


async def test_alembic_sees_no_difference(tmp_path: Path) -> None:
    """Whoever changes ``tables.py`` and forgets the migration is told by Alembic too."""
    await migrate.upgrade(database_url(tmp_path / "a.db"))

    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with opened(tmp_path / "a.db") as database, database.reading() as connection:
        assert await connection.run_sync(compare) == []


async def test_to_upgrade_again_changes_nothing(tmp_path: Path) -> None:
    """What is there stays, and the revision is the newest."""
    file = tmp_path / "a.db"
    url = database_url(file)
    assert await migrate.current(url) is None
    await migrate.upgrade(url)
    assert await migrate.current(url) == migrate.head()
    async with opened(file) as database, sqlite_stores(database).registry.transaction() as transaction:
        await transaction.insert_account(account())
    before = schema(file)
    await migrate.upgrade(url)
    assert schema(file) == before
    async with opened(file) as database:
        assert await sqlite_stores(database).registry.account("acme") == account()


async def test_two_upgrades_at_once(tmp_path: Path) -> None:
    """One makes the tables, the other waits and finds them."""
    url = database_url(tmp_path / "a.db")
    await asyncio.gather(*(migrate.upgrade(url) for _ in range(4)))
    assert await migrate.current(url) == migrate.head()


UPGRADE = """
import asyncio, sys
from formgate_server.storage.sql import migrate

asyncio.run(migrate.upgrade(sys.argv[1]))
"""


def test_two_processes_upgrade_at_once(tmp_path: Path) -> None:
    """The same between processes, from a file that is not there."""
    url = database_url(tmp_path / "a.db").render_as_string()
    processes = [subprocess.Popen([sys.executable, "-c", UPGRADE, url]) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert asyncio.run(migrate.current(url)) == migrate.head()


async def test_an_upgrade_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """All in one transaction: a table in the way stops it before any other is made, and the error names the table."""
    file = tmp_path / "a.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE secrets (x)")
    with pytest.raises(DBAPIError, match="secrets already exists"):
        await migrate.upgrade(database_url(file))
    assert list(schema(file)) == ["secrets"]
    assert await migrate.current(database_url(file)) is None


def test_a_kind_of_database_that_is_not_known() -> None:
    """Said at once, and without the URL's password."""
    with pytest.raises(ValueError, match=r"^No such kind of database: mysql\+asyncmy$"):
        open_database("mysql+asyncmy://me:secret@host/name")
