"""What all kinds of Redis share: the life of a request, from its sending to its result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.errors import ScriptFailed, StoreUnavailable
from formgate_server.storage.redis.line import Line
from formgate_server.storage.redis.meeting import Options
from formgate_server.storage.redis.refusals import Refusal, refusal_of
from formgate_server.storage.redis.request import Request, Words
from formgate_server.storage.redis.script import Script

OnState = Callable[[bool, str], None]

_PAUSE = 0.02
"""Seconds before a request is sent again that was refused for the moment."""
_TOO_MANY = "too many requests are under way already"
_AT_ONCE = 3
"""How often a request is sent again without a pause."""


class Client:
    """A Redis of some kind, made within a running loop."""

    def __init__(self, options: Options, on_state: OnState) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._timeout = options.timeout
        self._on_state = on_state
        self._told: bool | None = None
        self._scripts: dict[str, Script] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> Any:  # noqa: ANN401
        """As RedisClient says."""
        return await self.run_soon(script, slot, keys, args, repeatable=repeatable)

    def run_soon(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> asyncio.Future[Any]:
        """As RedisClient says."""
        if script.sha1 not in self._scripts:
            self._scripts[script.sha1] = script
        return self._send(script, slot, (len(keys), *keys, *args), repeatable=repeatable)

    async def command(self, *args: str | bytes | int, slot: str | None = None) -> Any:  # noqa: ANN401
        """As RedisClient says."""
        return await self._send(None, slot, args, repeatable=False)

    @property
    def connections(self) -> int:
        """As RedisClient says."""
        return sum(line.connection is not None for line in self._lines())

    @property
    def under_way(self) -> int:
        """As RedisClient says."""
        return sum(line.under_way for line in self._lines())

    async def close(self) -> None:
        """As RedisClient says."""
        lines = self._lines()
        for line in lines:
            line.close()
        await asyncio.gather(*(line.ended() for line in lines))
        while self._tasks:  # they find that it is closed
            await asyncio.wait(self._tasks)

    # What a kind says.

    def place(self, slot: str) -> object:
        """As RedisClient says."""
        raise NotImplementedError

    def _lines(self) -> list[Line]:
        """Return all lines."""
        raise NotImplementedError

    def _line(self, slot: str | None) -> Line | None:
        """Return the line to the primary of a hash tag, or to any primary; None: not known at present."""
        raise NotImplementedError

    async def _found_line(self, slot: str | None) -> Line:
        """Return the same, found first if it must be; raises StoreUnavailable."""
        raise NotImplementedError

    def _redirected(self, _error: str, _connection: Connection) -> Line | None:
        """Return the line to the node that MOVED or ASK, come over this connection, names; None: there is none."""
        raise NotImplementedError

    # The life of a request.

    def _send(self, script: Script | None, slot: str | None, words: Words, *, repeatable: bool) -> asyncio.Future[Any]:
        request = Request(self, self._loop, self._timeout, script, slot, words, repeatable)
        line = self._line(slot)
        connection = None if line is None else line.connection
        if connection is not None:
            if connection.takes:
                request.send(connection)
            else:
                request.fail(StoreUnavailable(_TOO_MANY))
        elif line is not None and not line.hopeful:
            request.fail(StoreUnavailable(line.why))
        else:
            self._send_later(request)
        return request.future

    def refused(self, request: Request, error: str) -> None:
        """Do about an error reply what it asks for."""
        refusal = refusal_of(error)
        connection, request.via = request.via, None
        if connection is None or refusal is Refusal.FAULT:
            request.fail(ScriptFailed(_short(error)))
            return
        if refusal is Refusal.REFUSED:
            request.fail(StoreUnavailable(_short(error)))
            return
        if refusal is Refusal.NOT_HERE:
            connection.retire(_short(error))
        if request.future.done():
            return
        if refusal is Refusal.UNKNOWN_SCRIPT and connection.is_open:
            request.expire_at_deadline(self._loop)
            request.sent = self._loop.time()
            request.send_in_full(connection)
            return
        line = None
        if refusal in (Refusal.MOVED, Refusal.ASK):
            line = self._redirected(error, connection)
            if line is None:
                request.fail(StoreUnavailable(_short(error)))
                return
        request.asking = refusal is Refusal.ASK
        self._send_later(request, line, pause=refusal is Refusal.NOT_NOW)

    def failed(self, request: Request) -> None:
        """Send it again, if there is a connection soon."""
        request.via = None
        self._send_later(request)

    def _send_later(self, request: Request, line: Line | None = None, *, pause: bool = False) -> None:
        if request.future.done():
            return
        request.expire_at_deadline(self._loop)
        request.tries += 1
        task = self._loop.create_task(self._resend(request, line, pause=pause or request.tries > _AT_ONCE))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _resend(self, request: Request, line: Line | None, *, pause: bool) -> None:
        try:
            if pause:
                await asyncio.sleep(_PAUSE)
            found = line or await self._found_line(request.slot)
            connection = found.connection or await found.ready()
        except StoreUnavailable as error:
            if line is None:
                request.fail(error)
            else:  # it was sent on to a node that is not there (any more)
                self._send_later(request, pause=True)
        else:
            if not connection.takes:
                request.fail(StoreUnavailable(_TOO_MANY))
            elif not request.future.done():
                request.sent = self._loop.time()
                request.send(connection)

    def _tell(self, up: bool, detail: str) -> None:  # noqa: FBT001 - as on_state takes it
        if up is not self._told:
            self._told = up
            self._on_state(up, detail)


def _short(error: str) -> str:
    return error.splitlines()[0][:200]
