"""A connection that outlives whoever uses it: a call that is cancelled does not break it off in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from sqlalchemy import Connection as SyncConnection
    from sqlalchemy import CursorResult, Executable
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_T = TypeVar("_T")


async def finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Do ``work`` to its end. Cancellation waits for that, and comes then.

    A statement cannot be called back from SQLite's thread. Were it abandoned there, its cursor would hold the
    transaction open, and the database locked, until the garbage collector came by.
    """
    task = asyncio.ensure_future(work)
    cancelled = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen
        raise cancelled
    return task.result()


class Connection:
    """A connection while it is lent. What takes longer than ``limit`` seconds is broken off, the connection with it."""

    def __init__(self, connection: AsyncConnection, limit: float | None) -> None:
        self._connection = connection
        self._limit = limit

    @property
    def dialect_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._connection.dialect.name

    async def execute(
        self, statement: Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement, for each of ``values`` if there are several, and fetch all its rows."""
        return await self._finished(self._connection.execute(statement, values))

    async def execute_plain(self, sql: str, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Run SQL as the driver takes it, for each of ``values`` if that is a list, and return its rows, if any."""
        result = await self._finished(self._connection.exec_driver_sql(sql, values))
        return result.all() if result.returns_rows else ()

    async def run_sync(self, work: Callable[[SyncConnection], _T]) -> _T:
        """Run a function that uses the connection without asyncio."""
        return await self._finished(self._connection.run_sync(work))

    async def begin(self) -> None:
        """Begin a transaction."""
        await self._finished(self._begin())

    async def commit(self) -> None:
        """End the transaction, durably."""
        await self._finished(self._connection.commit())

    async def close(self) -> None:
        """Give it back; what is not committed is undone."""
        if self._connection.sync_connection is not None:
            await self._finished(self._connection.close())

    async def _begin(self) -> None:
        await self._connection.begin()

    async def _finished(self, work: Coroutine[Any, Any, _T]) -> _T:
        with self.watched(self._limit):
            return await finished(work)

    @contextmanager
    def watched(self, limit: float | None) -> Iterator[None]:
        """Break off what the block does, the connection with it, where that takes longer than ``limit`` seconds."""
        watch = None if limit is None else asyncio.get_running_loop().call_later(limit, self._break_off)
        try:
            yield
        finally:
            if watch is not None:
                watch.cancel()

    def _break_off(self) -> None:
        """Drop the connection, unasked and unanswered: whoever waits for it is told that it is lost."""
        connection = self._connection.sync_connection
        if connection is not None and not connection.closed and not connection.invalidated:
            driver = connection.connection.driver_connection
            if driver is not None:
                driver.terminate()


@asynccontextmanager
async def lent(engine: AsyncEngine, limit: float | None) -> AsyncIterator[Connection]:
    """Lend a connection of ``engine``. What is not committed when it is given back is undone."""
    connection = engine.connect()
    lent = Connection(connection, limit)
    try:
        await finished(_connected(connection))
        yield lent
    finally:
        await lent.close()


async def _connected(connection: AsyncConnection) -> None:
    await connection.start()
