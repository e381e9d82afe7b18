"""Connections: readers side by side, and as many writers as the database takes at once.

What is particular to a kind of database is here and in ``errors.py``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, cast

from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from formgate_server.storage.sql.connection import Connection, finished, lent
from formgate_server.storage.sql.errors import translated
from formgate_server.storage.sql.turns import Turns

if TYPE_CHECKING:
    import aiosqlite
    from sqlalchemy import Connection as SyncConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

_SQLITE_READERS = 4
_BUSY_MILLISECONDS = 10_000  # another process, such as a backup, may hold the file for a moment

_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


class Database:
    """A database. Readers never wait for a writer; a writer has what it reads locked until it is done."""

    def __init__(self, reader: AsyncEngine, writer: AsyncEngine, *, readers: int, writers: int) -> None:
        """Take an engine for reading and one for writing (they may be one), and how many of each go on at once."""
        self.reader = reader
        self._writer = writer
        # Whoever has to wait does so here, in order: SQLite's own waiting is a poll, and so unfair that under load it
        # ends in "database is locked".
        self._readers = asyncio.Semaphore(readers)
        self._writers = Turns(writers)
        self._lookups: AsyncConnection | None = None
        self._driver: aiosqlite.Connection | None = None
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Connection]:
        """Lend a connection for one statement, which sees all that is committed."""
        with translated():
            async with self._readers, lent(self.reader) as connection:
                yield connection

    @asynccontextmanager
    async def writing(self, *, urgent: bool = True) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction: committed when the block ends, rolled back when it does not end well.

        What is not ``urgent`` lets go first whatever is: changes, and the marks that checks wait for.
        """
        with translated():
            async with self._writers.turn(urgent=urgent), lent(self._writer) as connection:
                await connection.begin()
                yield connection
                await connection.commit()

    async def lookups(self) -> aiosqlite.Connection:
        """Return the driver's own connection that all lookups share. SQLite only."""
        if self._driver is None:
            async with self._opening:
                if self._driver is None:
                    await finished(self._open_lookups())
        return cast("aiosqlite.Connection", self._driver)

    async def _open_lookups(self) -> None:
        self._lookups = await self.reader.connect()
        self._driver = (await self._lookups.get_raw_connection()).driver_connection

    async def close(self) -> None:
        """Close the connections."""
        if self._lookups is not None:
            await self._lookups.close()
            self._lookups = self._driver = None
        await self.reader.dispose()
        await self._writer.dispose()


def open_database(url: str | URL) -> Database:
    """Return the database of ``url``; nothing is connected yet. Raises ValueError for a kind that is not known."""
    parsed = make_url(url)
    if parsed.drivername == "sqlite+aiosqlite":
        return _open_sqlite(parsed)
    raise ValueError(f"No such kind of database: {parsed.drivername}")


def _open_sqlite(url: URL) -> Database:
    # Even where everything else is debugged: the driver would log every statement with its values.
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    # A reader's statement is a transaction by itself: no BEGIN, no ROLLBACK, each of which is a hop to another thread.
    reader = _sqlite_engine(url, "query_only = ON", isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
    writer = _sqlite_engine(url, "synchronous = FULL")
    # The driver's own BEGIN comes late and takes no lock: two who read before they write would undo each other.
    event.listen(writer.sync_engine, "begin", _begin_immediate)
    return Database(reader, writer, readers=_SQLITE_READERS, writers=1)


def _sqlite_engine(url: URL, pragma: str, **options: object) -> AsyncEngine:
    engine = create_async_engine(
        url,
        connect_args={"isolation_level": None, "timeout": _BUSY_MILLISECONDS / 1000},
        pool_size=_SQLITE_READERS + 1,  # and the lookups'
        hide_parameters=True,
        json_serializer=_json,
        **options,
    )
    pragmas = ("journal_mode = WAL", "foreign_keys = ON", pragma)

    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        for each in pragmas:
            cursor.execute(f"PRAGMA {each}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
    return engine


def _roll_back(connection: DBAPIConnection, _: ConnectionPoolEntry, __: BaseException | None) -> None:
    # Whoever is cancelled in a statement leaves its cursor to the garbage collector, and until then SQLite takes a
    # connection for open, its lock included, that was only closed. It must be undone, too.
    with suppress(asyncio.CancelledError, sqlite3.Error):
        connection.rollback()


def _begin_immediate(connection: SyncConnection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
