"""PostgreSQL, by asyncpg. Whatever happens to the server or the way there, nothing waits for it for ever.

Each wait has an end on both sides. The server's own (``_SESSION``) come first and leave the connection usable. Ours
come after that, for a server that is frozen or a network that is cut: the connection is dropped, whoever waits for it
is told, and nothing has to be called back.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import asyncpg
from sqlalchemy import ARRAY, LargeBinary, any_, bindparam, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from formgate_server.core.finishing import Finishing
from formgate_server.storage.sql.errors import unavailable
from formgate_server.storage.sql.parts import Parts
from formgate_server.storage.sql.postgres_tls import system_trust
from formgate_server.storage.sql.postgres_url import hosts_of
from formgate_server.storage.sql.turns import Turns

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select
    from sqlalchemy.engine import ExceptionContext
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

POOL = 10
SMALLEST_POOL = 3
_CONNECT_SECONDS = 3.0
_WAIT_SECONDS = 5.0
_CALL_SECONDS = 6.0  # more than any statement may take
_TRANSACTION_SECONDS = 20.0  # and one that this process can not end, idle_in_transaction_session_timeout ends
_SCAN_SECONDS = 600.0  # nobody's call waits for it
_CLOSE_SECONDS = 2.0
_FAILED_OVER = "25006"  # read_only_sql_transaction: what was the primary is none any more

_SESSION = {
    "application_name": "formgate",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "5s",
    "lock_timeout": "4s",
    "idle_in_transaction_session_timeout": "10s",
    # So that the server, too, lets go of what a client that has vanished holds.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
_UNREACHABLE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_json = partial(json.dumps, ensure_ascii=False, separators=(",", ":"))


def open_parts(url: str, pool: int, *, read_only: bool = False) -> Parts:
    """Open a database with ``pool`` connections at the most: for lookups, readers and writers, a part for each.

    Raises UnfitDatabaseError for a URL that will not do.
    """
    shared = max(1, pool * 3 // 10)
    writers = max(1, pool - 2 * shared)
    reads = Connector(url, {"default_transaction_read_only": "on"}, any_server=read_only)
    writes = reads if read_only else Connector(url)
    reader = _engine(reads, shared, isolation_level="AUTOCOMMIT", skip_autocommit_rollback=True)
    writer = reader if read_only else _engine(writes, writers, isolation_level="READ COMMITTED")
    lookups = PostgresLookups(reader, reads, shared)

    def give_up() -> None:
        for connector in (reads, writes):
            connector.terminate()

    return Parts(
        reader,
        writer,
        lookups,
        readers=shared,
        writers=writers,
        wait_seconds=_WAIT_SECONDS,
        call_seconds=_CALL_SECONDS,
        transaction_seconds=_TRANSACTION_SECONDS,
        scan_seconds=_SCAN_SECONDS,
        close_seconds=_CLOSE_SECONDS,
        give_up=give_up,
    )


def _engine(connector: Connector, size: int, **options: object) -> AsyncEngine:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connector.watched,
        pool_size=size,
        max_overflow=0,
        pool_timeout=_WAIT_SECONDS,
        hide_parameters=True,
        json_serializer=_json,
        **options,
    )
    event.listen(engine.sync_engine, "connect", connector.ready)
    event.listen(engine.sync_engine, "checkout", _check_open)
    event.listen(engine.sync_engine, "handle_error", _see_failover)
    return engine


def _check_open(connection: DBAPIConnection, _: ConnectionPoolEntry, __: object) -> None:
    """Have another one made where the server has closed this one meanwhile; that costs no round trip."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _see_failover(context: ExceptionContext) -> None:
    if getattr(context.original_exception, "sqlstate", None) == _FAILED_OVER:
        context.is_disconnect = True  # the whole pool is made anew, and finds the primary


class Connector:
    """Makes connections to the primary; which of the hosts that is, it remembers for the next time."""

    def __init__(self, url: str, settings: dict[str, str] | None = None, *, any_server: bool = False) -> None:
        """Take the ``settings`` of its sessions. ``any_server``: a standby will do."""
        self._urls = hosts_of(url)
        self._trust = system_trust(self._urls[0])
        self._settings = {**_SESSION, **(settings or {})}
        if "application_name=" in url:
            del self._settings["application_name"]
        self._wanted = "any" if any_server else "primary"
        self._all: WeakSet[Any] = WeakSet()
        self._watches: dict[int, asyncio.TimerHandle] = {}

    async def connect(self) -> Any:  # noqa: ANN401 - asyncpg is not typed
        """Return a new connection. Raises UnavailableError."""
        failed: Exception | None = None
        for url in tuple(self._urls):
            try:
                connection = await asyncpg.connect(
                    url,
                    timeout=_CONNECT_SECONDS,
                    ssl=None if self._trust is None else self._trust(),
                    server_settings=self._settings,
                    target_session_attrs=self._wanted,
                    max_cached_statement_lifetime=0,
                )
            except _UNREACHABLE as error:
                failed = error
                continue
            _keep_alive(connection)
            self._all.add(connection)
            self._urls.sort(key=url.__ne__)  # first the one that answers
            return connection
        told = str(failed) or "no answer in time"  # a timeout says nothing
        raise unavailable(f"{type(failed).__name__}: {told}") from failed

    async def watched(self) -> Any:  # noqa: ANN401 - asyncpg is not typed
        """Return a new connection; it is dropped where SQLAlchemy has it not ``ready`` in time."""
        connection = await self.connect()

        def late() -> None:
            self._watches.pop(id(connection), None)
            connection.terminate()

        self._watches[id(connection)] = asyncio.get_running_loop().call_later(_CONNECT_SECONDS, late)
        return connection

    def ready(self, connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        """End the watch."""
        watch = self._watches.pop(id(connection.driver_connection), None)
        if watch is not None:
            watch.cancel()

    def terminate(self) -> None:
        """Drop all connections."""
        for connection in tuple(self._all):
            connection.terminate()


def _keep_alive(connection: Any) -> None:  # noqa: ANN401 - asyncpg is not typed
    """Have the kernel find out within seconds that the other side is gone. asyncpg has no setting for it."""
    opened = connection._transport.get_extra_info("socket")  # noqa: SLF001 - there is no other way to it
    if opened is None or opened.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 3),
        ("TCP_KEEPINTVL", 2),
        ("TCP_KEEPCNT", 2),
        ("TCP_USER_TIMEOUT", 6_000),
    ):
        if hasattr(socket, name):  # not everywhere
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class PostgresLookups:
    """Lookups on connections of their own: one round trip each, by a statement that each connection has prepared.

    Who is cancelled leaves at once; the statement goes on to its end, so that its connection can be used again.
    """

    def __init__(self, reader: AsyncEngine, connector: Connector, most: int) -> None:
        self._dialect = reader.dialect
        self._connector = connector
        self._turns = Turns(most)
        self._idle: list[Any] = []
        self._finishing = Finishing()

    @property
    def use(self) -> Turns:
        """See ``Lookups``."""
        return self._turns

    def compile(self, select: Select[Any], column: ColumnElement[Any], _: int) -> str:
        """See ``Lookups``."""
        values = bindparam("values", type_=ARRAY(LargeBinary))
        return str(select.where(column == any_(values)).compile(dialect=self._dialect))

    async def fetch(self, sql: str, values: Sequence[object]) -> Sequence[Sequence[Any]]:
        """See ``Lookups``."""
        return await self._finishing.run(self._fetch(sql, values))

    async def _fetch(self, sql: str, values: Sequence[object]) -> Sequence[Sequence[Any]]:
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(_WAIT_SECONDS):
                await stack.enter_async_context(self._turns.turn(urgent=True))
            connection = self._take() or await self._connector.connect()
            watch = asyncio.get_running_loop().call_later(_CALL_SECONDS, connection.terminate)
            try:
                found: Sequence[Sequence[Any]] = await connection.fetch(sql, list(values))
            finally:
                watch.cancel()
                self._put(connection)
            return found

    def _take(self) -> Any:  # noqa: ANN401 - asyncpg is not typed
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _put(self, connection: Any) -> None:  # noqa: ANN401 - asyncpg is not typed
        if not connection.is_closed():
            self._idle.append(connection)
            return
        for other in self._idle:  # what has happened to one has most likely happened to all
            other.terminate()
        self._idle.clear()

    async def close(self) -> None:
        """See ``Lookups``."""
        await self._finishing.finish()
        while connection := self._take():
            await connection.close()
