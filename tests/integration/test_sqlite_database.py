from __future__ import annotations

import asyncio
import gc
import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError

from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import KeyState, UsageOutcome
from formgate_server.core.ports import StoredSecret
from formgate_server.storage.sql import migrate, sqlite
from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.fingerprints import Fingerprints, Stored
from tests.support.changing import AWAY, all_ways, cancelled_at, change, epoch_of, fill
from tests.support.stores import (
    account,
    add_key,
    database_url,
    digest,
    entry,
    key,
    opened,
    sqlite_stores,
    stored,
    token,
)


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A database that holds the account ``acme`` with the key ``k1``, whose name is the account's epoch."""
    file = tmp_path / "formgate.db"
    await migrate.upgrade(database_url(file))
    async with opened(file) as database:
        await fill(database)
    return file


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    """The same, open."""
    async with opened(file) as database:
        yield database


# -------------------------------------------------------------------------------------------------------- many at once


async def test_a_new_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    """Whoever opens a new file while another writes to it waits, where SQLite itself would refuse at once."""
    file = tmp_path / "formgate.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        upgrade = asyncio.create_task(migrate.upgrade(database_url(file)))
        done, _ = await asyncio.wait([upgrade], timeout=0.3)
        assert not done
        other.execute("ROLLBACK")
    await upgrade
    assert await migrate.current(database_url(file)) == migrate.head()


async def test_two_engines_write_at_once(file: Path) -> None:
    """Each change of each engine counts: none is lost and none fails because the other is writing."""

    async def changes(database: Database) -> None:
        for _ in range(20):
            await change(database)

    async with opened(file) as one, opened(file) as other:
        await asyncio.gather(changes(one), changes(other), changes(one))
        assert await epoch_of(one) == await epoch_of(other) == 61


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.support.changing import change
from tests.support.stores import opened

async def main() -> None:
    async with opened(Path(sys.argv[1])) as database:
        for _ in range(30):
            await change(database)

asyncio.run(main())
"""


def python(script: str, *words: str) -> subprocess.Popen[str]:
    """Start a script that may import the tests."""
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", script, *words], cwd=root, text=True, stdout=subprocess.PIPE)


def test_two_processes_write_at_once(file: Path) -> None:
    """The same between processes."""
    writers = [python(WRITER, str(file)) for _ in range(2)]
    for writer in writers:
        writer.communicate(timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]

    async def epoch() -> int:
        async with opened(file) as database:
            return await epoch_of(database)

    assert asyncio.run(epoch()) == 61


async def test_writers_come_in_their_turn(database: Database) -> None:
    """Who asks first writes first, however many there are: nobody starves."""
    order: list[int] = []

    async def write(number: int) -> None:
        async with database.writing():
            order.append(number)

    await asyncio.gather(*map(write, range(30)))
    assert order == list(range(30))


async def test_readers_do_not_wait_for_a_writer(database: Database) -> None:
    """While a change is under way, more readers than there are connections are answered."""
    stores = sqlite_stores(database)
    async with database.writing() as connection:
        await connection.execute(text("UPDATE accounts SET epoch = 99"))
        found = await asyncio.gather(*(stores.registry.account("acme") for _ in range(20)))
        assert found == [account()] * 20
        assert await epoch_of(database) == 1


# -------------------------------------------------------------------------------------------------------- cancellation


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_change_cancelled_anywhere(file: Path, times: int) -> None:
    """At whichever await a change is cancelled: it is done wholly or not at all, and the next is not held up."""
    step = 0
    async with opened(file) as database:
        await change(database)  # the connection is there
        while await cancelled_at(step, change(database), times):
            before = await epoch_of(database)
            assert await change(database) == before + 1
            step += 1
        assert await epoch_of(database) > 2
    assert step > 5


async def test_records_cancelled_anywhere(database: Database) -> None:
    """The same of usage records: all are there and counted, or none; sent again, each counts once."""
    stores = sqlite_stores(database)
    step = 0
    cancelled = True
    while cancelled:
        entries = [entry(f"r{step}-{number}", time=step * 3_600_000_000) for number in range(3)]
        cancelled = await cancelled_at(step, stores.usage.record(entries))
        assert len(set(await stores.usage.record(entries))) == 1
        step += 1
    assert set((await stores.hours()).values()) == {(3, 3)}
    assert step > 5


async def test_a_change_cancelled_while_it_connects(file: Path) -> None:
    """The same where the connection has yet to be made."""
    step = 0
    cancelled = True
    while cancelled:
        async with opened(file) as database:
            cancelled = await cancelled_at(step, change(database))
            before = await epoch_of(database)
            assert await change(database) == before + 1
        step += 1
    assert step > 5


@pytest.mark.parametrize("step", range(12))
async def test_when_everything_is_cancelled(file: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Even if the statement itself is cut off, as when a loop ends, the lock goes with the connection."""
    monkeypatch.setattr(sqlite, "_BUSY_MILLISECONDS", 500)
    execute: Any = aiosqlite.Connection._execute
    waits = iter(range(1_000))

    async def cut_off(*arguments: Any) -> Any:
        task = asyncio.current_task()
        if next(waits) == step and task is not None:
            task.cancel()
        return await execute(*arguments)

    async with opened(file) as database:
        await change(database)
        with monkeypatch.context() as patched:
            patched.setattr(aiosqlite.Connection, "_execute", cut_off)
            with pytest.raises(asyncio.CancelledError):
                await change(database)
        gc.disable()  # it would tidy up behind us
        try:
            before = await epoch_of(database)
            assert await change(database) == before + 1
        finally:
            gc.enable()


async def test_a_check_cancelled_anywhere(file: Path) -> None:
    """The connection that all checks share outlives each of them."""
    step = 0
    cancelled = True
    while cancelled:
        async with opened(file) as database:
            store = sqlite_stores(database).keys
            cancelled = await cancelled_at(step, store.find([digest("k1")]))
            assert await store.find([digest("k1")]) is not None
        step += 1
    assert step > 1


async def test_who_waits_and_is_cancelled_takes_no_turn(database: Database) -> None:
    """A writer cancelled in the queue holds up nobody behind it."""
    async with database.writing():
        tasks = [asyncio.ensure_future(change(database)) for _ in range(5)]
        await asyncio.sleep(0)
        for task in tasks[:4]:
            task.cancel()
    assert await tasks[4] == 2
    assert [task.cancelled() for task in tasks] == [True] * 4 + [False]


# ------------------------------------------------------------------------------------------------------------- crashes

STORM = """
import asyncio, sys
from pathlib import Path
from tests.support.changing import change
from tests.support.stores import entry, opened, sqlite_stores

async def main() -> None:
    async with opened(Path(sys.argv[1])) as database:
        number = 0
        while True:
            epoch = await change(database)
            await sqlite_stores(database).usage.record([entry(f"r{number}-{each}") for each in range(20)])
            print(f"[{epoch}, {number}]", flush=True)
            number += 1

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [1, 7, 30])
def test_what_was_acknowledged_survives_a_kill(file: Path, acknowledged: int) -> None:
    """After `kill -9` in the middle of writing, all that was acknowledged is there, and nothing by half."""
    with python(STORM, str(file)) as storm:
        assert storm.stdout is not None
        lines = [storm.stdout.readline() for _ in range(acknowledged)]
        storm.send_signal(signal.SIGKILL)
        lines += storm.stdout.read().splitlines()
    epoch, number = json.loads([line for line in lines if line.strip().endswith("]")][-1])

    async def look() -> None:
        async with opened(file) as database:
            assert await epoch_of(database) - epoch in (0, 1)
            stores = sqlite_stores(database)
            hours = await stores.hours()
            units, records = hours["acme", "k1", 0, ""]
            assert units == records == 20 * (number + 1) or records == 20 * (number + 2)
            sent = [entry(f"r{each}-{one}") for each in range(number + 1) for one in range(20)]
            assert set(await stores.usage.record(sent)) == {UsageOutcome.DUPLICATE}
            await change(database)

    asyncio.run(look())
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# -------------------------------------------------------------------------------------------------- how it is connected


async def test_durable_when_acknowledged(database: Database) -> None:
    """A writer waits for the disk at each commit (synchronous FULL); all go through the write-ahead log."""
    wanted = {"journal_mode": "wal", "foreign_keys": 1, "busy_timeout": 10_000}
    async with database.writing() as connection:
        for name, value in {**wanted, "synchronous": 2, "query_only": 0}.items():
            assert (await connection.execute(text(f"PRAGMA {name}"))).scalar_one() == value
    async with database.reading() as connection:
        for name, value in {**wanted, "query_only": 1}.items():
            assert (await connection.execute(text(f"PRAGMA {name}"))).scalar_one() == value


async def test_a_reader_can_not_write(database: Database) -> None:
    """Outside the writers' queue nothing is changed, not even by mistake."""
    with pytest.raises(UnavailableError):
        async with database.reading() as connection:
            await connection.execute(text("UPDATE accounts SET epoch = 99"))
    assert await epoch_of(database) == 1


async def test_nothing_is_left_behind(file: Path) -> None:
    """Closed, the database is one file again, to be copied as it is."""
    async with opened(file) as database:
        await change(database)
        assert await epoch_of(database) == 2
    assert [each.name for each in file.parent.iterdir()] == [file.name]


# ------------------------------------------------------------------------------------------------------ when it is away


@pytest.mark.parametrize("content", [None, b"this is not a database, by any means" * 100])
async def test_a_database_that_is_none(tmp_path: Path, content: bytes | None) -> None:
    """UnavailableError whichever way it is used, in words that tell a caller nothing of what is within."""
    file = tmp_path / "a.db"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    async with opened(file) as database:
        failed = await all_ways(database)
    # A connection that failed when it was opened is closed by its thread: that needs the loop a moment longer.
    for thread in threading.enumerate():
        if "_connection_worker_thread" in thread.name:
            await asyncio.to_thread(thread.join, 5)
    assert [(type(error), str(error)) for error in failed] == [(UnavailableError, AWAY)] * len(failed)
    assert {error.detail if isinstance(error, UnavailableError) else "" for error in failed} == {
        "SQLite: unable to open database file" if content is None else "SQLite: file is not a database"
    }


async def test_a_disk_that_is_full(database: Database) -> None:
    """What does not fit is undone and UNAVAILABLE, what is there is read; the log will say why."""
    async with database.writing() as connection:
        ((pages,),) = await connection.execute_plain("PRAGMA page_count", ())
        await connection.execute_plain(f"PRAGMA max_page_count = {pages}", ())

    async def filled() -> None:
        for _ in range(100):
            await change(database)

    with pytest.raises(UnavailableError, match=AWAY) as failed:
        await filled()
    assert failed.value.detail == "SQLite: database or disk is full"
    before = await epoch_of(database)
    async with database.writing() as connection:
        await connection.execute_plain("PRAGMA max_page_count = 1000000", ())
    assert await change(database) == before + 1


async def test_a_database_that_another_holds(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that waits for too long for another process gives up; readers are served; then all goes on."""
    monkeypatch.setattr(sqlite, "_BUSY_MILLISECONDS", 20)
    async with opened(file) as database:
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(UnavailableError, match=AWAY):
                await change(database)
            assert await epoch_of(database) == 1
        assert await change(database) == 2


async def test_a_fault_of_ours_is_none_of_the_database(database: Database, tmp_path: Path) -> None:
    """What no waiting repairs is not called unavailable: a broken reference, a table that is not there."""
    with pytest.raises(IntegrityError):
        await add_key(sqlite_stores(database).registry, key("k2", account_id="nobody"))
    async with opened(tmp_path / "empty.db") as empty:
        failed = await all_ways(empty)
    assert all(isinstance(error, DBAPIError | sqlite3.OperationalError) for error in failed)


async def test_no_value_is_in_an_error(database: Database) -> None:
    """Neither in its words nor in its cause's, which a log may show."""
    with pytest.raises(IntegrityError) as failed:
        await add_key(sqlite_stores(database).registry, key("k2", account_id="nobody", display_name="very private"))
    assert "very private" not in str(failed.value)
    assert "nobody" not in str(failed.value)


# -------------------------------------------------------------------------------------------------------- fingerprints


async def test_fingerprints(file: Path) -> None:
    """The first that are checked are remembered, for ever and for the next process; others only when it is said."""
    async with opened(file) as database:
        assert await Fingerprints(database).check("pepper", ["b", "a"]) == {"a", "b"}
    async with opened(file) as database:
        fingerprints = Fingerprints(database)
        assert await fingerprints.check("pepper", ["c"]) == {"a", "b"}
        await fingerprints.remember("pepper", ["c", "a"])
        assert await fingerprints.check("pepper", []) == {"a", "b", "c"}
        assert await fingerprints.check("sealing key", ["s"]) == {"s"}


async def test_what_is_of_use_under_a_pepper(database: Database) -> None:
    """Keys that can still be let in, each once, and tokens; no revoked or deleted ones, no secrets that have ended."""
    registry = sqlite_stores(database).registry
    await add_key(registry, key("k2", state=KeyState.DISABLED, expire_time=1), "s2")  # both can change
    await add_key(registry, key("k3", state=KeyState.REVOKED), "s3")
    await add_key(registry, key("k4"), "s4")
    async with registry.transaction() as transaction:
        await transaction.delete_key("k4", 5)
        await transaction.replace_secret("k1", stored("s1b"), 700)
        for number, changes in enumerate(({}, {"expire_time": 750}, {"expire_time": 700}, {"revoke_time": 1})):
            await transaction.insert_token(token(f"t{number}", **changes), digest(f"t{number}"), "pepper")
    fingerprints = Fingerprints(database)
    assert await fingerprints.stored("pepper", ["pepper", "another"], 700) == {"pepper": Stored(2, 2)}
    async with registry.transaction() as transaction:
        for key_id in ("k1", "k2"):
            await transaction.replace_secret(key_id, StoredSecret(digest(f"{key_id} new"), "another", None), 800)
    both = await fingerprints.stored("pepper", ["pepper", "another"], 799)
    assert both == {"pepper": Stored(2, 1), "another": Stored(2)}
    assert await fingerprints.stored("pepper", ["pepper"], 800) == {"pepper": Stored(0, 1)}
    assert await fingerprints.stored("pepper", [], 700) == {}


async def test_what_is_of_use_under_a_sealing_key(database: Database) -> None:
    """Keys whose secret can be shown again; no revoked or deleted ones, none that was rotated to another."""
    registry = sqlite_stores(database).registry
    async with registry.transaction() as transaction:
        for number, state in enumerate((KeyState.ENABLED, KeyState.REVOKED, KeyState.DISABLED, KeyState.ENABLED)):
            new = key(f"r{number}", state=state)
            await transaction.insert_key(new, stored(f"s{number}", recoverable=True), "")
        await transaction.delete_key("r3", 5)
    fingerprints = Fingerprints(database)
    assert await fingerprints.stored("sealing key", ["sealing key"], 0) == {"sealing key": Stored(2)}
    async with registry.transaction() as transaction:
        await transaction.replace_secret("r0", stored("s0b"), 700)
    assert await fingerprints.stored("sealing key", ["sealing key"], 0) == {"sealing key": Stored(1)}
    async with registry.transaction() as transaction:
        await transaction.replace_secret("r2", stored("s2b"), 700)
    assert await fingerprints.stored("sealing key", ["sealing key"], 0) == {}


@pytest.mark.parametrize(
    ("lost", "told"),
    [(Stored(1, 2), "1 key and 2 service tokens"), (Stored(1_000), "1,000 keys"), (Stored(0, 1), "1 service token")],
)
def test_what_is_stored_is_told(lost: Stored, told: str) -> None:
    """In words, for people."""
    assert str(lost) == told
