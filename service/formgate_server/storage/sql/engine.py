"""Connections: readers side by side, and as many writers as the database takes at once.

What is particular to a kind of database is in ``sqlite.py`` and ``postgres.py``, in ``dialect.py`` and ``errors.py``.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy.engine import URL, make_url

from formgate_server.storage.sql import postgres, sqlite
from formgate_server.storage.sql.connection import Connection, lent
from formgate_server.storage.sql.dialect import unhurried
from formgate_server.storage.sql.errors import translated, unavailable
from formgate_server.storage.sql.parts import Lookups, Parts, PoolUse, UnfitDatabaseError
from formgate_server.storage.sql.postgres_url import SCHEMES
from formgate_server.storage.sql.turns import Turns

_SCHEME = re.compile(r"[a-z][a-z0-9+]{0,31}", re.ASCII)


class Database:
    """A database. Readers never wait for a writer; a writer has what it reads locked until it is done."""

    def __init__(self, parts: Parts) -> None:
        self.reader = parts.reader
        self.is_away: Callable[[], bool] = lambda: False
        """Whether somebody who asks now and then has found that it does not answer: then nobody else waits for that."""
        self._lookups = parts.lookups
        self._parts = parts
        # Whoever has to wait does so here, in order: SQLite's own waiting is a poll, and so unfair that under load it
        # ends in "database is locked".
        self._readers = Turns(parts.readers)
        self._writers = Turns(parts.writers)

    @property
    def lookups(self) -> Lookups:
        """What selects by a list of values, on the shortest way. Raises UnavailableError where it is away."""
        self._check()
        return self._lookups

    @property
    def use(self) -> Mapping[str, PoolUse]:
        """How much of its connections is in use: those for ``lookup``, ``read`` and ``write``."""
        return {"lookup": self._lookups.use, "read": self._readers, "write": self._writers}

    def _check(self) -> None:
        if self.is_away():
            raise unavailable()

    @asynccontextmanager
    async def reading(self, *, anyway: bool = False) -> AsyncIterator[Connection]:
        """Lend a connection for one statement, which sees all that is committed. ``anyway``: to see if it is away."""
        if not anyway:
            self._check()
        with translated():
            async with AsyncExitStack() as stack:
                await self._turn(stack, self._readers.turn(urgent=True))
                yield await stack.enter_async_context(lent(self.reader, self._parts.call_seconds))

    @asynccontextmanager
    async def scanning(self) -> AsyncIterator[Connection]:
        """Lend a connection as ``reading`` does, for a statement that goes through whole tables: nobody's call."""
        seconds = self._parts.scan_seconds
        with translated():
            async with (
                self._readers.turn(urgent=True),
                lent(self.reader, seconds) as connection,
                unhurried(connection, seconds),
            ):
                yield connection

    @asynccontextmanager
    async def writing(self, *, urgent: bool = True) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction: committed when the block ends, rolled back when it does not end well.

        What is not ``urgent`` lets go first whatever is: changes, and the marks that checks wait for.
        """
        self._check()
        with translated():
            async with AsyncExitStack() as stack:
                await self._turn(stack, self._writers.turn(urgent=urgent))
                connection = await stack.enter_async_context(lent(self._parts.writer, self._parts.call_seconds))
                with connection.watched(self._parts.transaction_seconds):
                    await connection.begin()
                    yield connection
                    await connection.commit()

    @asynccontextmanager
    async def migrating(self) -> AsyncIterator[Connection]:
        """Lend a connection as ``writing`` does, but for as long as it takes."""
        with translated():
            async with self._writers.turn(urgent=True), lent(self._parts.writer, None) as connection:
                await connection.begin()
                yield connection
                await connection.commit()

    async def _turn(self, stack: AsyncExitStack, turn: AbstractAsyncContextManager[Any]) -> None:
        try:
            async with asyncio.timeout(self._parts.wait_seconds):
                await stack.enter_async_context(turn)
        except TimeoutError as error:
            raise unavailable() from error

    async def close(self) -> None:
        """Close the connections."""
        parts = self._parts
        late = None
        if parts.close_seconds is not None and parts.give_up is not None:
            late = asyncio.get_running_loop().call_later(parts.close_seconds, parts.give_up)
        try:
            await self._lookups.close()
            await self.reader.dispose()
            await parts.writer.dispose()
        finally:
            if late is not None:
                late.cancel()


def open_database(
    url: str | URL,
    *,
    pool: int = postgres.POOL,
    read_only: bool = False,
    kind: Callable[[Parts], Database] = Database,
) -> Database:
    """Return the database of ``url``; nothing is connected yet. Raises UnfitDatabaseError, never with the URL in it.

    ``pool``: how many connections to PostgreSQL there are at most. ``read_only``: whoever tries to write fails.
    """
    text = url if isinstance(url, str) else url.render_as_string(hide_password=False)
    scheme, there_is_one, _ = text.partition("://")
    if not there_is_one:
        raise UnfitDatabaseError("this is no URL of a database, such as postgresql://user:password@host/name")
    if scheme in SCHEMES:
        return kind(postgres.open_parts(text, pool, read_only=read_only))
    if scheme == "sqlite+aiosqlite":
        return kind(sqlite.open_parts(make_url(url), read_only=read_only))
    raise UnfitDatabaseError(f"No such kind of database: {scheme if _SCHEME.fullmatch(scheme) else '?'}")
