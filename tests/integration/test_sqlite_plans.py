"""How SQLite goes about what is asked of it: by an index, however large the tables are."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.keys import SqlKeyStore
from tests.support.stores import (
    POLICIES,
    account,
    add_key,
    database_url,
    digest,
    key,
    opened,
    sqlite_stores,
)
from tests.support.using import Statements, use, watched


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "formgate.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    """A database with one account and one key in it."""
    await migrate.upgrade(database_url(file))
    async with opened(file) as database:
        registry = sqlite_stores(database).registry
        async with registry.transaction() as transaction:
            await transaction.insert_account(account())
        await add_key(registry, key())
        yield database


def scans(file: Path, statements: Statements) -> list[str]:
    """Return the statements that go through a whole table."""
    found = []
    with closing(sqlite3.connect(file)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        scan = re.compile(rf"SCAN ({'|'.join(tables)})( USING .*)?")
        for statement, values in statements.items():
            if re.match("BEGIN|PRAGMA", statement):
                continue
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            if any(scan.fullmatch(step) for step in plan):
                found.append(f"{statement}\n{plan}")
    return found


async def test_nothing_goes_through_a_whole_table(file: Path, database: Database) -> None:
    """Neither a check, nor a change, nor a record of usage, nor a report."""
    with watched() as statements:
        await use(sqlite_stores(database))
    keys = SqlKeyStore(database, POLICIES)
    await keys.find([digest("a"), digest("b")])
    (check,) = keys._lookup._sql.values()
    statements[check] = (digest("a"), digest("b"))
    assert len(statements) > 30
    assert scans(file, statements) == []


async def test_a_scan_would_be_seen(file: Path, database: Database) -> None:
    """The test above can fail."""
    with watched() as statements:
        await sqlite_stores(database).registry.plans()
    (seen,) = scans(file, statements)
    assert "accounts" in seen
