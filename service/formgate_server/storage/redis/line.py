"""A line to a primary: a connection that is made again whenever it ends, and a circuit breaker.

While the line is down nobody waits for it. Only a first attempt may be waited for: after the start, and after a
connection was cut, which is healed in a moment if the server is well. A server that did not answer in time gets none.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

import hiredis

from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.meeting import NotReadyError, Options, meet_primary
from formgate_server.storage.redis.refusals import Refusal, refusal_of
from formgate_server.storage.redis.script import Script
from formgate_server.storage.redis.url import Address

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
_HEARTBEAT = 1.0
"""Seconds between looks at whether the server is still there, whatever else goes over the line."""

_DOWN = (OSError, NotReadyError, StoreUnavailable)


class Line:
    """A line. ``connection`` is the one to use, None while there is none; ``why`` says why."""

    def __init__(
        self,
        locate: Callable[[], Awaitable[Address]],
        options: Options,
        scripts: Mapping[str, Script],
        on_change: Callable[[Line], None],
    ) -> None:
        """``locate`` says where the primary is at present; ``on_change`` is told when the line goes up or down."""
        self.connection: Connection | None = None
        self.up: bool | None = None
        """Whether it is up, or was a moment ago and may be again; None: not known yet."""
        self.why = "not connected yet"
        self._locate = locate
        self._options = options
        self._scripts = scripts
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._hope: asyncio.Future[None] | None = self._loop.create_future()
        self._address: Address | None = None
        self._since = 0.0
        self._failures = 0
        self._over = False
        self._alive: set[Connection] = set()
        self._task = asyncio.create_task(self._keep())

    @property
    def hopeful(self) -> bool:
        """Whether a first attempt is under way, which may be waited for."""
        return self._hope is not None

    @property
    def alive(self) -> bool:
        """Whether anything of it is left: a connection that drains, one that is being made, or its keeper."""
        return bool(self._alive) or not self._task.done()

    @property
    def under_way(self) -> int:
        """How many requests have no answer yet, over connections that were given up, too. Any thread may look."""
        return sum(connection.under_way for connection in list(self._alive))

    async def ready(self) -> Connection:
        """Return the connection, if there is one or a first attempt makes one; else raises StoreUnavailable."""
        if self._hope is not None:
            await asyncio.shield(self._hope)
        if self.connection is None:
            raise StoreUnavailable(self.why)
        return self.connection

    def renew(self, why: str) -> None:
        """Look anew where the primary is; what is under way is still answered."""
        if self.connection is not None:
            self.connection.retire(why)

    def close(self, *, drain: bool = False) -> None:
        """End the line, and at once what is under way on it, or with ``drain`` when that is answered.

        What drains may still be ended at once.
        """
        self._over = True
        self._task.cancel()
        self.why = "closed"
        self._end_hope()
        if self.connection is not None:
            self.connection.on_close = self._end_hope
            self.connection = None
        for connection in list(self._alive):
            (connection.retire if drain else connection.abort)("closed")

    async def ended(self) -> None:
        """Wait, after ``close``, until nothing of it is left, nor of a connection that was just being made."""
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.sleep(0)  # a transport ends a turn after it was told to

    # Keeping it up.

    async def _keep(self) -> None:
        while not self._over:  # asyncio.gather may swallow that it was cancelled, where something fails just then
            patience = self._options.timeout if self._hope is not None else max(1.0, self._options.timeout)
            try:
                async with asyncio.timeout(patience):
                    self._address = await self._locate()
                    connection = await meet_primary(self._address, self._options, self._scripts.values())
            except _DOWN as error:
                self._failures += 1
                self._went_down(str(error) or f"{self._address or 'the primary'}: no connection in time")
            except Exception as error:  # noqa: BLE001 - whatever a server says that none should, it is tried again
                self._failures += 1
                self._went_down(f"{self._address or 'the primary'}: {type(error).__name__} when it was met")
            else:
                await self._used(connection)
            if self._hope is None and not self._over:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._failures, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - so that not all come at once

    async def _used(self, connection: Connection) -> None:
        """Let the connection be used until it is not open any more."""
        if self._over:
            connection.abort("closed")
            return
        if not connection.is_open:  # it ended while we were told of it
            self._failures += 1
            self._went_down(f"{self._address}: {connection.why}")
            return
        closed = asyncio.Event()

        def close() -> None:
            closed.set()
            self._closed(connection)

        connection.on_close = close
        connection.on_end = partial(self._alive.discard, connection)
        self._alive.add(connection)
        self._went_up(connection)
        while not closed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), _HEARTBEAT)
            if connection.takes:
                connection.ask("PING").add_done_callback(partial(_heard, connection))

    def _went_up(self, connection: Connection) -> None:
        self.connection = connection
        self.why = ""
        self._since = self._loop.time()
        self._end_hope()
        if self.up is not True:
            self.up = True
            self._on_change(self)

    def _closed(self, connection: Connection) -> None:
        self.connection = None
        lived = self._loop.time() - self._since
        self._failures = 0 if lived > _LONGEST_PAUSE else self._failures + 1
        why = f"{self._address}: {connection.why}"
        if connection.overdue or self._failures > 1:
            self._went_down(why)
        else:
            self.why = why
            self._hope = self._loop.create_future()

    def _went_down(self, why: str) -> None:
        if self._over:
            return
        self.why = why
        self._end_hope()
        if self.up is not False:
            self.up = False
            self._on_change(self)

    def _end_hope(self) -> None:
        if self._hope is not None:
            hope, self._hope = self._hope, None
            hope.set_result(None)


def _heard(connection: Connection, pong: asyncio.Future[object]) -> None:
    if pong.cancelled() or pong.exception() is not None:
        return
    reply = pong.result()
    if isinstance(reply, hiredis.ReplyError) and refusal_of(str(reply)) is Refusal.NOT_HERE:
        connection.retire(str(reply))
