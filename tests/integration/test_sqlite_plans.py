"""How SQLite goes about what is asked of it: by an index, however large the tables are."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from formgate_server.core.ports import AuditFilter, Cursor, KeyFilter, UsageFilter
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.keys import SqlKeyStore
from tests.support.stores import (
    POLICIES,
    Stores,
    account,
    add_key,
    database_url,
    digest,
    entry,
    key,
    member,
    opened,
    sqlite_stores,
    stored,
)
from tests.support.stores import event as audit_event

Statements = dict[str, Any]
"""What was executed, and with which values."""


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


@contextmanager
def watched() -> Iterator[Statements]:
    """Collect what is executed."""
    statements: Statements = {}

    def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        statements[statement] = values[0] if isinstance(values, list) else values

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


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


async def use(stores: Stores) -> None:
    """Do what servers do all day, with several of each thing at once."""
    registry, usage = stores.registry, stores.usage
    async with registry.transaction() as transaction:
        await transaction.account("acme")
        await transaction.key("k1")
        await transaction.key_of_request("acme", "r1")
        await transaction.count_keys("acme")
        await transaction.keys_created_by("acme", "ann")
        await transaction.put_member(member())
        await transaction.member("acme", "ann")
        await transaction.replace_secret("k1", stored("s2"), 700)
        await transaction.sealed_secret("k1")
        await transaction.update_key(key())
        await transaction.token_of_digest([digest("a"), digest("b")])
        await transaction.raise_epoch("acme")
        await transaction.audit(audit_event())
        await transaction.delete_member("acme", "ann")
    for after in (None, Cursor(1, "a")):
        await registry.keys(KeyFilter("acme", 1, 1, "ann"), after, 10)
        await registry.members("acme", after, 10)
    await registry.audit_rows(AuditFilter("acme", "keys/k1", 1), 5, 10)
    await registry.audit_rows(AuditFilter("acme"), None, 10)
    await registry.note_used({"k1": (5, "")})
    entries = [entry(f"u{n}", time=n * 10**10, tags={"form": f"f{n}", "team": "t"}) for n in range(5)]
    for _ in range(2):
        await usage.record([*entries, entry("u1", account_id="b")])
    await usage.owners(["k1", "k2"])
    for group_by in ("", "key", "operation", "tag:form"):
        for key_id in ("", "k1"):
            await usage.sums(UsageFilter("acme", key_id, 0, 10**12), group_by)
    await stores.reservations.load(["a", "b"])


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
