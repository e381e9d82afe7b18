"""Counters in Redis by a clock that a test sets: what runs is our own client and scripts, but for one line of them.

The line of a script that asks Redis for the time is replaced by one that takes the time from its last argument, which
is that of the test's clock when the script was sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from formgate_server.core.ports import Clock
from formgate_server.storage.redis.client import RedisClient, connect
from formgate_server.storage.redis.script import Script

_ASKED = "local now = microseconds(redis.call('TIME'))"
_GIVEN = "local now = tonumber(table.remove(ARGV))"

_ANSWERS = 20
"""As many as a check may need, one after the other."""

under_way: set[asyncio.Future[Any]] = set()
"""What was sent to any Redis and is not answered yet."""
_clients: list[RedisClient] = []


@lru_cache(maxsize=64)
def timed(script: Script) -> Script:
    """Return the script by a clock that is given."""
    assert script.source.count(_ASKED) == 1, f"{script.name} asks for the time elsewhere"
    return Script(script.name, script.source.replace(_ASKED, _GIVEN), script.changed)


class TimedClient:
    """A RedisClient whose scripts go by ``clock``."""

    def __init__(self, client: RedisClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self.asked: Counter[str] = Counter()
        """How often each script was sent."""

    def place(self, slot: str) -> object:
        """As RedisClient says."""
        return self._client.place(slot)

    @property
    def connections(self) -> int:
        """As RedisClient says."""
        return self._client.connections

    @property
    def under_way(self) -> int:
        """As RedisClient says."""
        return self._client.under_way

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
        self.asked[script.name] += 1
        return _seen(
            self._client.run_soon(timed(script), slot, keys, (*args, self._clock.now()), repeatable=repeatable)
        )

    async def run(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> Any:
        """As RedisClient says."""
        return await self.run_soon(script, slot, keys, args, repeatable=repeatable)

    async def command(self, *args: str | bytes | int, slot: str | None = None) -> Any:
        """As RedisClient says."""
        return await _seen(asyncio.ensure_future(self._client.command(*args, slot=slot)))

    async def close(self) -> None:
        """As RedisClient says."""
        await self._client.close()


def _seen(future: asyncio.Future[Any]) -> asyncio.Future[Any]:
    under_way.add(future)
    future.add_done_callback(under_way.discard)
    return future


def connected(url: str, timeout: float = 10.0) -> RedisClient:
    """Return a client that ``end`` closes."""
    client = connect(url, timeout=timeout, on_state=lambda _up, _detail: None)
    _clients.append(client)
    return client


async def end() -> None:
    """Close all clients of this loop."""
    while _clients:
        await _clients.pop().close()
    await asyncio.sleep(0)


async def answered() -> None:
    """Return when nothing is under way, and whoever has asked goes on with its answer.

    What is asked again and again, as marks are that the database does not take, is not waited for without end.
    """
    await _few_turns()
    for _ in range(_ANSWERS):
        if not under_way:
            return
        await asyncio.wait(under_way)
        await _few_turns()


async def _few_turns() -> None:
    """What is asked in one turn of the loop is sent in the next, and what is answered is told in the next but one."""
    for _ in range(3):
        await asyncio.sleep(0)
