"""PostgreSQL, the real one: many at once, cut off anywhere, killed, frozen, and back again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, text
from sqlalchemy.exc import IntegrityError

from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import UsageOutcome
from formgate_server.storage.sql import migrate, postgres
from formgate_server.storage.sql.engine import Database, open_database
from formgate_server.storage.sql.fingerprints import Fingerprints
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.trail import Trail
from tests.support.changing import AWAY, all_ways, cancelled_at, change, epoch_of, fill
from tests.support.postgres import PostgresServer
from tests.support.stores import account, add_key, digest, entry, key, opened, sql_stores
from tests.support.using import use


@pytest.fixture(scope="module")
def broken_server() -> Iterator[PostgresServer]:
    """A server that tests freeze, stop and kill, and leave running."""
    with PostgresServer(durable=True) as server:
        yield server


@pytest.fixture
async def url(postgres_server: PostgresServer) -> AsyncIterator[URL]:
    """A database that holds the account ``acme`` with the key ``k1``, whose name is the account's epoch."""
    async with postgres_server.database() as url:
        async with opened(url) as database:
            await fill(database)
        yield url


@pytest.fixture
async def database(url: URL) -> AsyncIterator[Database]:
    """The same, open."""
    async with opened(url) as database:
        yield database


@pytest.fixture
async def fragile(broken_server: PostgresServer) -> AsyncIterator[URL]:
    """The same on the server that may be broken."""
    async with broken_server.database() as url:
        async with opened(url) as database:
            await fill(database)
        yield url


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that waits for PostgreSQL does so for half a second, not for seconds."""
    for name in ("_CONNECT_SECONDS", "_WAIT_SECONDS", "_CALL_SECONDS", "_CLOSE_SECONDS"):
        monkeypatch.setattr(postgres, name, 0.5)
    session = {"statement_timeout": "300ms", "lock_timeout": "200ms"}
    monkeypatch.setattr(postgres, "_SESSION", postgres._SESSION | session)


_WAITING_LONG = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = $1 AND wait_event_type = 'Lock' AND clock_timestamp() - query_start > interval '400 ms'
"""


def assert_away(outcomes: list[Any]) -> None:
    """Check that each call ended in an UnavailableError that tells a caller nothing of what is within."""
    assert [(type(each), str(each)) for each in outcomes] == [(UnavailableError, AWAY)] * len(outcomes)


async def goes_on(database: Database, seconds: float = 10) -> None:
    """Return when a change is made and seen again; UnavailableError after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            epoch = await change(database)
            assert await epoch_of(database) == epoch
        except UnavailableError:  # half a second is little for a server that has all to do that it slept through
            if time.monotonic() > deadline:
                raise
        else:
            return


# -------------------------------------------------------------------------------------------------------- many at once


async def test_two_servers_write_at_once(url: URL) -> None:
    """Each change of each server counts: none is lost and none fails because the other is writing."""

    async def changes(database: Database) -> None:
        for _ in range(10):
            await change(database)

    async with opened(url) as one, opened(url) as other:
        await asyncio.gather(*(changes(each) for each in (one, other, one, other, one)))
        assert await epoch_of(one) == await epoch_of(other) == 51


async def test_never_more_connections_than_allowed(url: URL, postgres_server: PostgresServer) -> None:
    """However much is asked at once, a process has as many connections as its setting says, and no more."""
    database = open_database(url, pool=5)
    stores = sql_stores(database)
    asked = [change(database) for _ in range(20)], [stores.keys.find([digest("k1")]) for _ in range(50)]
    reads = [stores.registry.account("acme") for _ in range(50)]
    await asyncio.gather(*asked[0], *asked[1], *reads)
    watcher = await postgres_server.connect()
    try:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1"
        assert 3 <= await watcher.fetchval(count, url.database) <= 5
    finally:
        await watcher.close()
        await database.close()


async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    """While a change is under way, more readers than there are connections are answered, by the state before it."""
    stores = sql_stores(database)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE accounts SET epoch = 99"))
        found = await asyncio.gather(*(stores.registry.account("acme") for _ in range(20)))
        assert found == [account()] * 20
        assert await epoch_of(database) == 1
        await connection.execute(text("UPDATE accounts SET epoch = 1"))


async def test_of_two_that_block_each_other_one_gives_up(url: URL) -> None:
    """A deadlock ends in UnavailableError for one, with nothing of it done; the other goes through."""
    async with opened(url) as one, opened(url) as other:
        await sql_stores(one).registry.note_used({"k1": (1, "")})
        turns = [asyncio.Event(), asyncio.Event()]

        async def cross(database: Database, mine: int, first: str, second: str) -> None:
            async with database.writing() as connection:
                await connection.execute(text(first))
                turns[mine].set()
                await turns[1 - mine].wait()
                await connection.execute(text(second))

        accounts = "UPDATE accounts SET display_name = display_name || 'x'"
        keys = "UPDATE keys SET hint = hint || 'x'"
        crossed = cross(one, 0, accounts, keys), cross(other, 1, keys, accounts)
        outcomes = await asyncio.gather(*crossed, return_exceptions=True)
        assert_away([each for each in outcomes if each is not None])
        assert outcomes.count(None) == 1
        registry = sql_stores(one).registry
        assert await registry.account("acme") == account(display_name="Acmex")
        found = await registry.key("k1")
        assert found is not None
        assert found.hint == "pf_...abcdx"


async def test_fingerprints_of_two_at_once(postgres_server: PostgresServer) -> None:
    """Of servers that start at once with different peppers, one is the first; every other is told of that one's."""
    async with postgres_server.database() as url, AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(opened(url)) for _ in range(6)]
        checks = (Fingerprints(each).check("pepper", [f"p{at}"]) for at, each in enumerate(databases))
        (first,) = set(await asyncio.gather(*checks))
        assert len(first) == 1


# -------------------------------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("times", [1, 3])
async def test_a_change_cancelled_anywhere(database: Database, times: int) -> None:
    """At whichever await a change is cancelled: it is done wholly or not at all, and the next is not held up."""
    step = 0
    await change(database)  # the connection is there
    while await cancelled_at(step, change(database), times):
        before = await epoch_of(database)
        assert await change(database) == before + 1
        step += 1
    assert await epoch_of(database) > 2
    assert step > 5


async def test_a_change_cancelled_while_it_connects(url: URL) -> None:
    """The same where the connection has yet to be made."""
    step = 0
    cancelled = True
    while cancelled:
        async with opened(url) as database:
            cancelled = await cancelled_at(step, change(database))
            before = await epoch_of(database)
            assert await change(database) == before + 1
        step += 1
    assert step > 5


async def test_checks_that_are_cancelled_leave_at_once_and_cost_no_connection(
    url: URL, postgres_server: PostgresServer
) -> None:
    """Callers that give up do not wait for the database, and what they asked on can be asked on again."""
    database = open_database(url, pool=3)  # one of them for checks
    keys = sql_stores(database).keys
    watcher = await postgres_server.connect()
    find_backends = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND query LIKE '%secrets%'"
    try:
        await keys.find([digest("k1")])
        before = await watcher.fetch(find_backends, url.database)
        for _ in range(20):
            check = asyncio.ensure_future(keys.find([digest("k1")]))
            await asyncio.sleep(0)
            check.cancel()
            done, _pending = await asyncio.wait([check], timeout=0)
            assert check.cancelled() or not done
        assert await keys.find([digest("k1")]) is not None
        assert await watcher.fetch(find_backends, url.database) == before
    finally:
        await watcher.close()
        await database.close()


# ------------------------------------------------------------------------------------------------- stopped and started


async def test_after_a_restart_nothing_fails(fragile: URL, broken_server: PostgresServer) -> None:
    """Connections that the server has closed are seen to be closed, and made anew, before anything is asked on them."""
    async with opened(fragile) as database:
        await all_ways(database)
        broken_server.restart()
        await asyncio.sleep(0.05)  # the loop sees that they are closed
        assert not [each for each in await all_ways(database) if isinstance(each, BaseException)]
        assert await epoch_of(database) == 3


async def test_while_it_is_stopped(fragile: URL, broken_server: PostgresServer) -> None:
    """Whichever way it is used: UnavailableError, at once; started again, all goes on."""
    async with opened(fragile) as database:
        await change(database)
        broken_server.stop()
        try:
            began = time.monotonic()
            assert_away(await all_ways(database))
            assert time.monotonic() - began < 2
        finally:
            broken_server.start()
        assert await change(database) == 3
        assert await epoch_of(database) == 3


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("connected", ["connected", "not yet connected"])
async def test_while_it_is_frozen(fragile: URL, broken_server: PostgresServer, connected: str) -> None:
    """A server that takes what is sent and never answers: each way of using it ends, in the time that is set.

    Also where there are more callers than connections, and where a connection is made just then. Thawed, all goes on.
    """
    async with opened(fragile) as database:
        if connected == "connected":
            await all_ways(database)
        broken_server.pause()
        try:
            for _ in range(2):
                began = time.monotonic()
                outcomes = await asyncio.gather(*(all_ways(database) for _ in range(8)))
                assert_away([each for some in outcomes for each in some])
                assert time.monotonic() - began < 4
        finally:
            broken_server.resume()
        await goes_on(database)


@pytest.mark.usefixtures("impatient")
async def test_cancelled_while_it_is_frozen(fragile: URL, broken_server: PostgresServer) -> None:
    """Who gives up waits for nothing for ever: not even for the statement that is under way."""
    async with opened(fragile) as database:
        await all_ways(database)
        broken_server.pause()
        try:
            began = time.monotonic()
            tasks = [asyncio.ensure_future(all_ways(database)) for _ in range(3)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert time.monotonic() - began < 3
        finally:
            broken_server.resume()
        await goes_on(database)


@pytest.mark.usefixtures("impatient")
async def test_closed_while_it_is_frozen(fragile: URL, broken_server: PostgresServer) -> None:
    """A server of ours can end while PostgreSQL does not answer."""
    async with opened(fragile) as database:
        await all_ways(database)
        broken_server.pause()
        began = time.monotonic()
    broken_server.resume()
    assert time.monotonic() - began < 3


@pytest.mark.usefixtures("impatient")
async def test_a_row_that_somebody_holds(url: URL, postgres_server: PostgresServer) -> None:
    """Who waits for a lock too long gives up, and its connection is as good as before."""
    other = await postgres_server.connect(str(url.database))
    try:
        async with opened(url) as database:
            await change(database)
            async with other.transaction():
                await other.execute("SELECT FROM accounts FOR UPDATE")
                with pytest.raises(UnavailableError, match=AWAY) as failed:
                    await change(database)
                assert failed.value.detail == "PostgreSQL: canceling statement due to lock timeout (55P03)"
                assert await epoch_of(database) == 2
            assert await change(database) == 3
    finally:
        await other.close()


async def test_what_goes_through_whole_tables_may_take_its_time(
    url: URL, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start counts what is stored under older peppers, an operator what is old: more than a call may wait for."""
    monkeypatch.setattr(postgres, "_CALL_SECONDS", 0.2)
    monkeypatch.setattr(postgres, "_SESSION", postgres._SESSION | {"statement_timeout": "100ms"})
    other, watcher = [await postgres_server.connect(str(url.database)) for _ in range(2)]
    trail = Trail(url)
    try:
        async with opened(url) as database:
            async with other.transaction():
                await other.execute("LOCK TABLE secrets, usage_records, audit_events")
                scans: list[asyncio.Future[Any]] = [
                    asyncio.ensure_future(scan)
                    for scan in (
                        Fingerprints(database).stored("pepper", ["pepper"], 0),
                        sql_stores(database).usage.count_old(1, 1),
                        trail.heads(),
                    )
                ]
                async with asyncio.timeout(10):
                    while await watcher.fetchval(_WAITING_LONG, url.database) < len(scans):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            stored, counted, heads = await asyncio.gather(*scans)
            async with database.reading() as connection:  # the same connection, and a call as any other
                assert (await connection.execute(text("SHOW statement_timeout"))).scalar_one() == "100ms"
        assert str(stored["pepper"]) == "1 key"
        assert counted == (0, 0)
        assert heads == {"acme": 1}
    finally:
        await trail.close()
        await other.close()
        await watcher.close()


async def test_a_change_that_goes_on_and_on(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction has an end, however short its statements are: who follows the changes relies on that."""
    monkeypatch.setattr(database, "_parts", database._parts._replace(transaction_seconds=0.3))

    async def drag() -> None:
        async with database.writing() as connection:
            await connection.execute(text("UPDATE accounts SET epoch = 99"))
            for _ in range(100):
                await connection.execute(text("SELECT pg_sleep(0.02)"))

    with pytest.raises(UnavailableError, match=AWAY):
        await drag()
    assert await epoch_of(database) == 1


STORM = """
import asyncio, sys
from sqlalchemy import make_url
from tests.support.changing import change
from tests.support.stores import entry, opened, sql_stores

async def main() -> None:
    async with opened(make_url(sys.argv[1])) as database:
        number = 0
        while True:
            epoch = await change(database)
            await sql_stores(database).usage.record([entry(f"r{number}-{each}") for each in range(20)])
            print(f"[{epoch}, {number}]", flush=True)
            number += 1

asyncio.run(main())
"""


async def _made(server: PostgresServer) -> URL:
    """Make a database that stays until its server goes."""
    url = await server.make_database()
    async with opened(url) as database:
        await fill(database)
    return url


@pytest.mark.parametrize("whom", ["postgres", "us"])
@pytest.mark.parametrize("acknowledged", [1, 20])
def test_what_was_acknowledged_survives_a_kill(broken_server: PostgresServer, acknowledged: int, whom: str) -> None:
    """After `kill -9` of either side in the middle of writing: what was acknowledged is there, and nothing by half."""
    url = asyncio.run(_made(broken_server))
    words = [sys.executable, "-c", STORM, url.render_as_string(hide_password=False)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(words, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as storm:
        assert storm.stdout is not None
        lines = [storm.stdout.readline() for _ in range(acknowledged)]
        if whom == "postgres":
            broken_server.kill()
        else:
            storm.kill()
        lines += storm.stdout.read().splitlines()
    if whom == "postgres":
        broken_server.start()
    epoch, number = json.loads([line for line in lines if line.strip().endswith("]")][-1])

    async def look() -> None:
        async with opened(url) as database:
            assert await epoch_of(database) - epoch in (0, 1)
            stores = sql_stores(database)
            units, records = (await stores.hours())["acme", "k1", 0, ""]
            assert units == records
            assert records in (20 * (number + 1), 20 * (number + 2))
            sent = [entry(f"r{each}-{one}") for each in range(number + 1) for one in range(20)]
            assert set(await stores.usage.record(sent)) == {UsageOutcome.DUPLICATE}
            await change(database)

    asyncio.run(look())


async def test_what_a_dead_server_of_ours_held_is_free(url: URL) -> None:
    """A connection that is dropped in the middle of a change undoes it, and its locks go."""
    async with opened(url) as one, opened(url) as other:
        with suppress(UnavailableError):
            async with one.writing() as connection:
                await connection.execute(text("UPDATE accounts SET epoch = 99"))
                connection._break_off()
                await connection.execute(text("SELECT 1"))
        assert await change(other) == 2
        assert await change(one) == 3


async def test_a_failover_is_seen(database: Database) -> None:
    """Once a write is refused because this is no primary any more, every connection is made anew."""

    async def backend() -> int:
        async with database.writing() as connection:
            return int((await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one())

    before = await backend()
    assert await backend() == before

    async def refused() -> None:
        async with database.writing() as connection:
            await connection.execute(text("SET TRANSACTION READ ONLY"))
            await connection.execute(text("UPDATE accounts SET epoch = 99"))

    with pytest.raises(UnavailableError, match=AWAY):
        await refused()
    assert await backend() != before
    assert await epoch_of(database) == 1


async def test_ended_by_an_administrator(url: URL, database: Database, postgres_server: PostgresServer) -> None:
    """A connection that is ended in the middle of a change costs that change and no other."""

    async def ended() -> None:
        async with database.writing() as connection:
            await connection.execute(text("UPDATE accounts SET epoch = 99"))
            pid = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            await postgres_server.execute(f"SELECT pg_terminate_backend({pid})")
            await connection.execute(text("SELECT 1"))

    with pytest.raises(UnavailableError, match=AWAY):
        await ended()
    assert await change(database) == 2


# -------------------------------------------------------------------------------------------------- how it is connected


async def test_how_a_session_is_set(database: Database) -> None:
    """Nothing is waited for without an end, what is committed is on disk, and READ COMMITTED is what the locks need."""
    wanted = {
        "synchronous_commit": "on",
        "statement_timeout": "5s",
        "lock_timeout": "4s",
        "idle_in_transaction_session_timeout": "10s",
        "tcp_user_timeout": "10000",
        "transaction_isolation": "read committed",
        "application_name": "formgate",
    }
    async with database.writing() as connection:
        for name, value in wanted.items():
            assert (await connection.execute(text(f"SHOW {name}"))).scalar_one() == value
    async with database.reading() as connection:
        assert (await connection.execute(text("SHOW default_transaction_read_only"))).scalar_one() == "on"


async def test_a_database_that_forgets_is_refused(url: URL, postgres_server: PostgresServer) -> None:
    """Where a commit is acknowledged before it is written, what was acknowledged could be lost."""
    async with opened(url) as database:
        await migrate.check(database)
    await postgres_server.execute(f"ALTER DATABASE {url.database} SET synchronous_commit = off")
    async with opened(url) as database:
        with pytest.raises(UnfitDatabaseError, match="synchronous_commit"):
            await migrate.check(database)


async def test_a_reader_can_not_write(database: Database) -> None:
    """Outside the writers' queue nothing is changed, not even by mistake."""
    with pytest.raises(UnavailableError):
        async with database.reading() as connection:
            await connection.execute(text("UPDATE accounts SET epoch = 99"))
    assert await epoch_of(database) == 1


async def test_a_check_is_one_round_trip(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a connection has prepared the statement, a look-up sends one thing and waits for one answer."""
    keys = sql_stores(database).keys
    await keys.find([digest("k1")])
    (connection,) = database.lookups._idle  # type: ignore[attr-defined]
    told: list[str] = []
    monkeypatch.setattr(connection._protocol, "prepare", told.append, raising=True)
    assert await keys.find([digest("k1"), digest("k2")]) is not None


@pytest.mark.parametrize(
    "query",
    [
        {"sslmode": "disable", "connect_timeout": "3", "keepalives": "1"},
        {
            "sslmode": "prefer",
            "target_session_attrs": "read-write",
            "application_name": "mine",
            "channel_binding": "prefer",
        },
    ],
)
async def test_urls_as_libpq_has_them(url: URL, query: dict[str, str]) -> None:
    """What others' URLs hold is understood, or left out where it asks for nothing."""
    async with opened(url.update_query_dict(query)) as database:
        assert await epoch_of(database) == 1
        async with database.reading() as connection:
            name = (await connection.execute(text("SHOW application_name"))).scalar_one()
        assert name == query.get("application_name", "formgate")


async def test_the_host_that_answers_is_found(url: URL, postgres_server: PostgresServer) -> None:
    """Of several hosts each is tried, and the one that answered is the first the next time."""
    one = url.render_as_string(hide_password=False)
    two = one.replace("127.0.0.1:", "127.0.0.1:1,127.0.0.1:")
    database = open_database(two)
    try:
        assert await epoch_of(database) == 1
    finally:
        await database.close()


async def test_encryption_that_is_asked_for_is_not_done_without(url: URL) -> None:
    """A server that has no TLS is not spoken to where the URL says that there must be."""
    async with opened(url.update_query_dict({"sslmode": "require"})) as database:
        assert_away(await all_ways(database))


@pytest.mark.parametrize("wrong", ["password", "user", "database", "port"])
async def test_who_starts_it_is_told_what_is_wrong_and_no_password(url: URL, wrong: str) -> None:
    """The reason is in a note for the operator; neither there nor in any cause is the password."""
    changed: dict[str, Any] = {"password": "not this secret", "user": "nobody", "database": "none", "port": 1}
    name = {"user": "username"}.get(wrong, wrong)
    bad = url.set(**{name: changed[wrong]})
    async with opened(bad) as database:
        with pytest.raises(UnavailableError, match=AWAY) as failed:
            await change(database)
    error: BaseException | None = failed.value
    assert failed.value.detail
    while error is not None:
        said = f"{error} {error!r} {vars(error)}"
        assert str(url.password) not in said
        assert "not this secret" not in said
        error = error.__cause__


@pytest.mark.usefixtures("impatient")
async def test_no_room_for_another_connection(url: URL, postgres_server: PostgresServer) -> None:
    """Too many connections is unavailable, and passes."""
    await postgres_server.execute("CREATE ROLE few LOGIN PASSWORD 'few' CONNECTION LIMIT 0")
    await postgres_server.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO few", str(url.database))
    try:
        async with opened(url.set(username="few", password="few")) as database:
            assert_away(await all_ways(database))
            await postgres_server.execute("ALTER ROLE few CONNECTION LIMIT 20")
            assert await change(database) == 2
    finally:
        await postgres_server.execute("DROP OWNED BY few", str(url.database))
        await postgres_server.execute("DROP ROLE few")


async def test_the_rights_that_a_server_needs(postgres_server: PostgresServer) -> None:
    """To read and write rows, and nothing more: a role that owns nothing does all that servers do all day."""
    await postgres_server.execute("CREATE ROLE plain LOGIN PASSWORD 'plain'")
    async with postgres_server.database() as url:
        granted = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO plain"
        await postgres_server.execute(granted, str(url.database))
        async with opened(url.set(username="plain", password="plain")) as database:
            await fill(database)
            await use(sql_stores(database))
            assert await Fingerprints(database).check("pepper", ["a"]) == {"a"}
            assert await migrate.current(url) == migrate.head()
        await postgres_server.execute(
            "REVOKE INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public FROM plain", str(url.database)
        )
        trail = Trail(url.set(username="plain", password="plain"))
        assert await trail.is_ours()
        assert await trail.heads() == {"acme": 1}
        await trail.close()
    await postgres_server.execute("DROP ROLE plain")


async def test_no_value_is_in_an_error(database: Database) -> None:
    """What only a fault of ours can cause goes through, without the values: not in its causes either."""
    with pytest.raises(IntegrityError) as failed:
        await add_key(sql_stores(database).registry, key("k2", account_id="nobody", display_name="very private"))
    error: BaseException | None = failed.value
    while error is not None:
        assert "very private" not in str(error)
        assert "nobody" not in str(error)
        error = error.__cause__
