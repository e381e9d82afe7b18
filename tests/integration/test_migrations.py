from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import URL, Connection
from sqlalchemy.exc import DBAPIError

from formgate_server.core.audit import FIRST, linked
from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import Span
from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import AuditFilter, KeyFilter, Reserved, UsageFilter, UsageSum
from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.dialect import alone
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.tables import metadata
from tests.support.places import Place, PostgresPlace, SqlitePlace
from tests.support.postgres import PostgresServer
from tests.support.stores import (
    AUDIT_KEYS,
    account,
    digest,
    entry,
    event,
    key,
    member,
    opened,
    sql_stores,
    stored,
)


@pytest.fixture(params=["sqlite", "postgres"])
async def places(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[list[Place]]:
    """Two empty databases of each kind."""
    if request.param == "sqlite":
        yield [SqlitePlace(tmp_path / "a.db"), SqlitePlace(tmp_path / "b.db")]
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    async with server.database(migrated=False) as one, server.database(migrated=False) as other:
        yield [PostgresPlace(server, one), PostgresPlace(server, other)]


@pytest.fixture
def place(places: list[Place]) -> Place:
    """One of them."""
    return places[0]


async def test_migrations_make_the_tables(places: list[Place]) -> None:
    """From nothing, all migrations together make what ``tables.py`` says, to the letter."""
    migrated, direct = places
    await migrate.upgrade(migrated.url)
    async with opened(direct.url) as database, database.migrating() as connection:
        await connection.run_sync(metadata.create_all)
    made = await migrated.schema()
    made = {name: definition for name, definition in made.items() if "alembic_version" not in name}
    assert made == await direct.schema()


async def test_alembic_sees_no_difference(place: Place) -> None:
    """Whoever changes ``tables.py`` and forgets the migration is told by Alembic too."""
    await migrate.upgrade(place.url)

    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with opened(place.url) as database, database.reading() as connection:
        assert await connection.run_sync(compare) == []


async def test_to_upgrade_again_changes_nothing(place: Place) -> None:
    """What is there stays, and the revision is the newest."""
    url = place.url
    assert await migrate.current(url) is None
    await migrate.upgrade(url)
    assert await migrate.current(url) == migrate.head()
    async with opened(url) as database, sql_stores(database).registry.transaction() as transaction:
        await transaction.insert_account(account())
    before = await place.schema()
    await migrate.upgrade(url)
    assert await place.schema() == before
    async with opened(url) as database:
        assert await sql_stores(database).registry.account("acme") == account()


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
    async with database.migrating() as connection:
        await connection.run_sync(upgrade)
    await database.close()


async def test_data_of_0001_lives_on(place: Place) -> None:
    """A key of before is found, rotated and deleted, its usage summed; its audit rows stay unsigned, later ones chain.

    That they are unsigned can be told: they have no MAC. The first signed row's chain begins anew.
    """
    await upgrade_to(place.url, "0001")
    await place.run(BEFORE_0002)
    await migrate.upgrade(place.url)
    async with opened(place.url) as database:
        stores = sql_stores(database)
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


async def test_data_of_0002_lives_on(place: Place) -> None:
    """A counter's mark of before is there, in no order with others: one process alone raised it."""
    await upgrade_to(place.url, "0001")
    await place.run(BEFORE_0002)
    await upgrade_to(place.url, "0002")
    await place.run("INSERT INTO reservations VALUES ('acme/daily/day', '[1790000000000000, 7]', 10)")
    await migrate.upgrade(place.url)
    async with opened(place.url) as database:
        stores = sql_stores(database)
        assert await stores.reservations.load(["acme/daily/day"]) == {
            "acme/daily/day": Reserved(Span(1_790_000_000_000_000, 7), 10, serial=0, expire_time=None)
        }
        assert await stores.epochs.of(["acme"]) == {"acme": 1}
        began = (await stores.epochs.since(None)).until
        async with stores.registry.transaction() as transaction:
            await transaction.raise_epoch("acme")
        assert (await stores.epochs.since(began)).epochs == {"acme": 2}


async def test_what_0001_writes_0002_takes(place: Place) -> None:
    """It only adds: a server of before, still running while this one is started, can go on writing."""
    await migrate.upgrade(place.url)
    added = {"delete_time", "expire_time", "sealed", "sealing_key_id", "mac", "mac_key_id"}
    added |= {"serial"}
    known = {}
    for table in re.findall(r"INSERT INTO (\w+)", BEFORE_0002):
        columns = await place.columns(table)
        known[table] = columns[:-1] if table == "keys" else [each for each in columns if each not in added]
    await place.run(re.sub(r"INTO (\w+)", lambda match: f"INTO {match[1]} ({quoted(known[match[1]])})", BEFORE_0002))
    async with opened(place.url) as database:
        assert await sql_stores(database).keys.find([digest("s1")]) is not None


def quoted(names: list[str]) -> str:
    """Return column names as SQL has them."""
    return ", ".join(f'"{name}"' for name in names)


async def test_several_upgrades_at_once(place: Place) -> None:
    """One makes the tables, the others wait and find them."""
    await asyncio.gather(*(migrate.upgrade(place.url) for _ in range(4)))
    assert await migrate.current(place.url) == migrate.head()


UPGRADE = """
import asyncio, sys
from formgate_server.storage.sql import migrate

asyncio.run(migrate.upgrade(sys.argv[1]))
"""


async def test_several_processes_upgrade_at_once(place: Place) -> None:
    """The same between processes."""
    words = (sys.executable, "-c", UPGRADE, place.url.render_as_string(hide_password=False))
    processes = [await asyncio.create_subprocess_exec(*words) for _ in range(3)]
    async with asyncio.timeout(60):
        assert [await process.wait() for process in processes] == [0, 0, 0]
    assert await migrate.current(place.url) == migrate.head()


async def test_an_upgrade_that_fails_leaves_nothing(place: Place) -> None:
    """All in one transaction: a table in the way stops it before any other is made, and the error names the table."""
    await place.run("CREATE TABLE secrets (x INTEGER)")
    before = await place.schema()
    with pytest.raises(DBAPIError, match=r"secrets\W* already exists"):
        await migrate.upgrade(place.url)
    assert await place.schema() == before
    assert await migrate.current(place.url) is None


async def test_an_upgrade_gives_up_on_one_that_hangs(postgres_server: PostgresServer) -> None:
    """PostgreSQL: whoever waits for another's upgrade, or for a table in use, does not do so for ever."""
    async with postgres_server.database(migrated=False) as url, opened(url) as database:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(migrate, "_LOCK_SECONDS", 0.2)
            async with database.migrating() as connection:
                await alone(connection, "migrate")
                with pytest.raises(UnavailableError):
                    await migrate.upgrade(url)
        await migrate.upgrade(url)


async def test_a_server_wants_its_own_revision(place: Place) -> None:
    """`serve` changes nothing on PostgreSQL: a database that is not of its version is refused, and it is said why."""

    async def refusal() -> str:
        async with opened(place.url) as database:
            with pytest.raises(UnfitDatabaseError) as refused:
                await migrate.check(database)
        return str(refused.value)

    assert "revision none" in await refusal()
    await upgrade_to(place.url, "0001")
    assert "`formgate migrate` brings it there" in await refusal()
    await migrate.upgrade(place.url)
    await place.run("UPDATE alembic_version SET version_num = '9999'")
    await place.run("UPDATE compatibility SET oldest = '9998'")
    assert "a later version's" in await refusal()
    with pytest.raises(UnfitDatabaseError, match="a later version's"):
        await migrate.upgrade(place.url)


async def test_a_later_revision_that_only_added_will_do(place: Place) -> None:
    """While an upgrade is under way, or taken back, servers of before start; and their `migrate` changes nothing."""
    await migrate.upgrade(place.url)
    await place.run("UPDATE alembic_version SET version_num = '9999'")
    async with opened(place.url) as database:
        await migrate.check(database)
    await migrate.upgrade(place.url)
    assert await migrate.current(place.url) == "9999"


async def test_data_of_0003_lives_on(place: Place) -> None:
    """Servers of it, which know of no compatibility, went on only beside their own revision."""
    await upgrade_to(place.url, "0001")
    await place.run(BEFORE_0002)
    await upgrade_to(place.url, "0003")
    await place.run("INSERT INTO changes VALUES ('acme', 2, 1790000000000000)")
    await migrate.upgrade(place.url)
    async with opened(place.url) as database:
        await migrate.check(database)
        assert (await sql_stores(database).epochs.since(1_790_000_000_000_000)).epochs == {"acme": 2}


def test_a_kind_of_database_that_is_not_known() -> None:
    """Said at once, and without the URL's password."""
    with pytest.raises(ValueError, match=r"^No such kind of database: mysql\+asyncmy$"):
        open_database("mysql+asyncmy://me:secret@host/name")
