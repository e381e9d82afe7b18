"""A connection that outlives whoever uses it: a call that is cancelled does not break it off in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
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
    """A connection while it is lent."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    @property
    def dialect_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._connection.dialect.name

    async def execute(
        self, statement: Executable, values: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
    ) -> CursorResult[*tuple[Any, ...]]:
        """Run a statement, for each of ``values`` if there are several, and fetch all its rows."""
        return await finished(self._connection.execute(statement, values))

    async def run_sync(self, work: Callable[[SyncConnection], _T]) -> _T:
        """Run a function that uses the connection without asyncio."""
        return await finished(self._connection.run_sync(work))

    async def begin(self) -> None:
        """Begin a transaction."""
        await finished(self._begin())

    async def commit(self) -> None:
        """End the transaction, durably."""
        await finished(self._connection.commit())

    async def _begin(self) -> None:
        await self._connection.begin()


@asynccontextmanager
async def lent(engine: AsyncEngine) -> AsyncIterator[Connection]:
    """Lend a connection of ``engine``. What is not committed when it is given back is undone."""
    connection = engine.connect()
    try:
        await finished(_connected(connection))
        yield Connection(connection)
    finally:
        if connection.sync_connection is not None:
            await finished(connection.close())


async def _connected(connection: AsyncConnection) -> None:
    await connection.start()
