from __future__ import annotations

import asyncio
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DBAPIError

from formgate_server.core.audit import FIRST, linked
from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import AuditFilter, KeyFilter, UsageFilter, UsageSum
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.tables import metadata
from tests.support.stores import (
    AUDIT_KEYS,
    account,
    database_url,
    digest,
    entry,
    event,
    key,
    member,
    opened,
    sqlite_stores,
    stored,
)


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


BEFORE_0002 = f"""
INSERT INTO accounts VALUES ('acme', 'Acme', 'default', 'free', 1, '', '[]', 1, 1, 1000);
INSERT INTO keys VALUES ('k1', 'acme', 'a key', 1, 1, 'pf_...abcd', 'ann', 2000, NULL, NULL, NULL, '', '[]', '[]', '[]',
    '[]', '{{}}', 1);
INSERT INTO secrets VALUES (X'{digest("s1").hex()}', 'k1', 'pepper');
INSERT INTO key_requests VALUES ('acme', 'r1', 'k1');
INSERT INTO audit_events VALUES ('acme', 1, 4000, 'CreateAccount', 'accounts/acme', 't1', '', '', NULL, '{{}}', '');
INSERT INTO audit_events VALUES ('acme', 2, 4000, 'CreateKey', 'keys/k1', 't1', 'ann', '::1', NULL, '{{"a":1}}', 'n');
INSERT INTO audit_heads VALUES ('acme', 2);
INSERT INTO usage_records VALUES ('acme', 'u1', X'{digest("c").hex()}', 'k1', 5, 'x', '', 0, NULL, 7,
    '{{"form":"f1"}}', NULL, '');
INSERT INTO usage_hours VALUES ('acme', 'k1', 0, 'x', 5, 1);
"""


async def upgrade_to(url: URL, revision: str) -> None:
    """Bring a database to a revision of before."""

    def upgrade(connection: Connection) -> None:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    database = open_database(url)
    async with database.writing() as connection:
        await connection.run_sync(upgrade)
    await database.close()


async def test_data_of_0001_lives_on(tmp_path: Path) -> None:
    """A key of before is found, rotated and deleted, its usage summed; its audit rows stay unsigned, later ones chain.

    That they are unsigned can be told: they have no MAC. The first signed row's chain begins anew.
    """
    file = tmp_path / "a.db"
    await upgrade_to(database_url(file), "0001")
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(BEFORE_0002)
    await migrate.upgrade(database_url(file))
    async with opened(file) as database:
        stores = sqlite_stores(database)
        assert await stores.registry.account("acme") == account()
        assert await stores.registry.keys(KeyFilter("acme"), None, 10) == [key()]
        async with stores.registry.transaction() as transaction:
            assert await transaction.count_keys("acme") == 1
            assert await transaction.sealed_secret("k1") is None
            await transaction.put_member(member())
            await transaction.replace_secret("k1", stored("s2"), 700)
            await transaction.audit(event())
        found = [await stores.keys.find([digest(secret)]) for secret in ("s1", "s2")]
        assert [record and (record.key, record.secret_end) for record in found] == [(key(), 700), (key(), None)]

        newest, *unsigned = await stores.registry.audit_rows(AuditFilter("acme"), None, 10)
        assert [(row.sequence, row.mac, row.mac_key_id) for row in unsigned] == [(2, b"", ""), (1, b"", "")]
        assert unsigned[0].event.after == {"a": 1}
        assert AUDIT_KEYS.verifies(linked(FIRST, 3, newest.event), newest.mac, newest.mac_key_id)

        assert await stores.usage.record([entry("u1", "c"), entry("u2", units=2, tags={"form": "f1"})]) == [
            UsageOutcome.DUPLICATE,
            UsageOutcome.ACCEPTED,
        ]
        hour = UsageFilter("acme", "k1", 0, 1)
        assert await stores.usage.sums(hour, "") == [UsageSum(0, "", 7, 2)]
        assert await stores.usage.sums(hour, "tag:form") == [UsageSum(0, "f1", 2, 1)]
        async with stores.registry.transaction() as transaction:
            await transaction.delete_key("k1", 5)
        assert await stores.keys.find([digest("s1")]) is None


async def test_what_0001_writes_0002_takes(tmp_path: Path) -> None:
    """It only adds: a server of before, still running while this one is started, can go on writing."""
    file = tmp_path / "a.db"
    await migrate.upgrade(database_url(file))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        columns = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in re.findall(r"INSERT INTO (\w+)", BEFORE_0002)
        }
        added = {"delete_time", "expire_time", "sealed", "sealing_key_id", "mac", "mac_key_id"}
        known = {table: [each for each in of if each not in added] for table, of in columns.items()}
        known["keys"] = columns["keys"][:-1]
        named = re.sub(r"INTO (\w+)", lambda match: f"INTO {match[1]} ({quoted(known[match[1]])})", BEFORE_0002)
        connection.executescript(named)
    async with opened(file) as database:
        assert await sqlite_stores(database).keys.find([digest("s1")]) is not None


def quoted(names: list[str]) -> str:
    """Return column names as SQL has them."""
    return ", ".join(f'"{name}"' for name in names)


async def test_two_upgrades_at_once(tmp_path: Path) -> None:
    """One makes the tables, the other waits and finds them."""
    url = database_url(tmp_path / "a.db")
    await asyncio.gather(*(migrate.upgrade(url) for _ in range(4)))
    assert await migrate.current(url) == migrate.head()


UPGRADE = """
import asyncio, sys
from formgate_server.core.audit import FIRST, linked
from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import AuditFilter, KeyFilter, UsageFilter, UsageSum
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
