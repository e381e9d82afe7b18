"""SQLite: a file of this machine, one writer at a time."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from sqlalchemy import bindparam, event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from formgate_server.storage.sql.connection import finished
from formgate_server.storage.sql.parts import Parts

if TYPE_CHECKING:
    import aiosqlite
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy import Connection as SyncConnection
    from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
    from sqlalchemy.pool import ConnectionPoolEntry

_READERS = 4
_BUSY_MILLISECONDS = 10_000  # another process, such as a backup, may hold the file for a moment
_AGAIN_SECONDS = 0.02

_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def open_parts(url: URL, *, read_only: bool = False) -> Parts:
    """Open a file, which is made where it is missing unless it is ``read_only``."""
    # Even where everything else is debugged: the driver would log every statement with its values.
    logging.getLogger("aiosqlite").setLevel(logging.WARNING)
    if read_only:
        place = f"file:{quote(url.database or '')}"
        engine = create_async_engine(
            URL.create("sqlite+aiosqlite", database=place, query={"mode": "ro", "uri": "true"}), hide_parameters=True
        )
        return Parts(engine, engine, SqliteLookups(engine), readers=1, writers=1)
    # A reader's statement is a transaction by itself: no BEGIN, no ROLLBACK, each of which is a hop to another thread.
    reader = _engine(url, "query_only = ON", isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
    writer = _engine(url, "synchronous = FULL")
    # The driver's own BEGIN comes late and takes no lock: two who read before they write would undo each other.
    event.listen(writer.sync_engine, "begin", _begin_immediate)
    return Parts(reader, writer, SqliteLookups(reader), readers=_READERS, writers=1)


def _engine(url: URL, pragma: str, **options: object) -> AsyncEngine:
    engine = create_async_engine(
        url,
        connect_args={"isolation_level": None, "timeout": _BUSY_MILLISECONDS / 1000},
        pool_size=_READERS + 1,  # and the lookups'
        hide_parameters=True,
        json_serializer=_json,
        **options,
    )

    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        _write_ahead(cursor)
        for each in ("foreign_keys = ON", pragma):
            cursor.execute(f"PRAGMA {each}")
        cursor.close()

    event.listen(engine.sync_engine, "connect", prepare)
    event.listen(engine.sync_engine, "invalidate", _roll_back)
    return engine


def _write_ahead(cursor: DBAPICursor) -> None:
    # Of several who do this to a new file at once, SQLite refuses all but one without any waiting for it: each has
    # read the file, and none could go on while the others wait. So whoever is refused lets go, and comes again.
    until = time.monotonic() + _BUSY_MILLISECONDS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            await_only(asyncio.sleep(_AGAIN_SECONDS * random.random()))  # noqa: S311 - to come apart
        else:
            return


def _roll_back(connection: DBAPIConnection, _: ConnectionPoolEntry, __: BaseException | None) -> None:
    # Whoever is cancelled in a statement leaves its cursor to the garbage collector, and until then SQLite takes a
    # connection for open, its lock included, that was only closed. It must be undone, too.
    with suppress(asyncio.CancelledError, sqlite3.Error):
        connection.rollback()


def _begin_immediate(connection: SyncConnection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class _Shared:
    """How much one connection is used that takes one statement after the other."""

    most = 1

    def __init__(self) -> None:
        self.under_way = 0

    @property
    def in_use(self) -> int:
        """See ``PoolUse``."""
        return min(self.under_way, 1)

    @property
    def waiting(self) -> int:
        """See ``PoolUse``."""
        return max(self.under_way - 1, 0)


class SqliteLookups:
    """Lookups on one connection that all share.

    SQLAlchemy's asyncio takes five hops to SQLite's thread for a select, and as many waits for the GIL. This takes one.
    """

    def __init__(self, reader: AsyncEngine) -> None:
        self._reader = reader
        self._connection: AsyncConnection | None = None
        self._driver: aiosqlite.Connection | None = None
        self._opening = asyncio.Lock()
        self.use = _Shared()

    def compile(self, select: Select[Any], column: ColumnElement[Any], length: int) -> str:
        """See ``Lookups``."""
        statement = select.where(column.in_(bindparam("values", [b""] * length, expanding=True)))
        return str(statement.compile(dialect=self._reader.dialect, compile_kwargs={"render_postcompile": True}))

    async def fetch(self, sql: str, values: Sequence[object]) -> Sequence[Sequence[Any]]:
        """See ``Lookups``."""
        if self._driver is None:
            async with self._opening:
                if self._driver is None:
                    await finished(self._open())
        self.use.under_way += 1
        try:
            return list(await cast("aiosqlite.Connection", self._driver).execute_fetchall(sql, values))
        finally:
            self.use.under_way -= 1

    async def _open(self) -> None:
        self._connection = await self._reader.connect()
        self._driver = (await self._connection.get_raw_connection()).driver_connection

    async def close(self) -> None:
        """See ``Lookups``."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = self._driver = None
