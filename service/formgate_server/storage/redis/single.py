"""One primary."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from formgate_server.storage.redis.base import Client, OnState
from formgate_server.storage.redis.connection import Connection
from formgate_server.storage.redis.line import Line
from formgate_server.storage.redis.meeting import Options
from formgate_server.storage.redis.url import Address


class Redis(Client):
    """One primary: ``locate`` says where it is at present."""

    def __init__(self, options: Options, on_state: OnState, locate: Callable[[], Awaitable[Address]]) -> None:
        super().__init__(options, on_state)
        self._all = [Line(locate, options, self._scripts, self._changed) for _ in range(options.connections)]

    def _lines(self) -> list[Line]:
        return self._all

    def place(self, slot: str) -> object:
        """As RedisClient says."""
        return self._line(slot)

    def _line(self, slot: str | None) -> Line:
        # The same for the same hash tag, so that what concerns an account is run in order, and WAIT counts for it.
        return self._all[0] if len(self._all) == 1 else self._all[hash(slot) % len(self._all)]

    async def _found_line(self, slot: str | None) -> Line:
        return self._line(slot)

    def _redirected(self, _error: str, _connection: Connection) -> Line | None:
        return None  # MOVED: the server belongs to a cluster, whose URL must say so

    def _changed(self, line: Line) -> None:
        states = [each.up for each in self._all]
        if False in states:
            self._tell(up=False, detail=line.why)
        elif None not in states:
            self._tell(up=True, detail="connected")
