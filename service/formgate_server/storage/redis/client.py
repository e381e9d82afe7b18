"""The client of the hot path: scripts and commands, pipelined, to the primary that has them.

redis-py's asyncio client costs more than the rest of a check (docs/performance.md); this one does what a check needs,
and no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from formgate_server.storage.redis.base import OnState
from formgate_server.storage.redis.cluster import RedisCluster
from formgate_server.storage.redis.meeting import Options
from formgate_server.storage.redis.script import Script
from formgate_server.storage.redis.sentinel import RedisBehindSentinel
from formgate_server.storage.redis.single import Redis
from formgate_server.storage.redis.url import Address, parse_url


class RedisClient(Protocol):
    """A Redis, whatever it is made of."""

    async def run(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> Any:  # noqa: ANN401 - a reply may be anything
        """Run a script on the primary that has the hash tag ``slot``: that of all keys, or of one ``place`` with it.

        Raises StoreUnavailable when nothing happened: it was not sent, or was refused; LostAnswer when it was sent and
        its answer never came: it may have been run; ScriptFailed when the script itself broke off. None
        of them later than ``timeout``. ``repeatable``: running it twice does no harm, so it may be sent again after a
        lost answer.
        """
        ...

    def run_soon(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> asyncio.Future[Any]:
        """Do the same without a coroutine a call: what comes in one turn of the loop goes out in one write."""
        ...

    async def command(self, *args: str | bytes | int, slot: str | None = None) -> Any:  # noqa: ANN401
        """Run a command on the primary that has the hash tag, or on any; not sent again after a lost answer.

        WAIT counts for what was run before it with the same ``slot``, unless another primary has taken over since.
        """
        ...

    def place(self, slot: str) -> object:
        """Return what is equal for hash tags whose keys one script may have, over one connection."""
        ...

    @property
    def connections(self) -> int:
        """How many connections may be used. Any thread may look."""
        ...

    @property
    def under_way(self) -> int:
        """How many requests have no answer yet. Any thread may look."""
        ...

    async def close(self) -> None:
        """End it; what is under way fails."""
        ...


def connect(  # noqa: PLR0913 - each of them an operator's choice
    url: str,
    *,
    timeout: float,
    on_state: OnState,
    connections: int = 1,
    most: int = 4_096,
    wait_replicas: int = 0,
) -> RedisClient:
    """Return a client, within a running loop; it connects in the background, and again whenever it must.

    ``timeout``: seconds that a request may take. ``on_state`` is told (up, detail), once per change: down, when
    requests fail at once, and up again. ``connections``: how many to each primary. ``most``: requests under way at once
    on one of them, beyond which they fail at once. ``wait_replicas``: how many replicas must have what a script has
    done before its answer counts. Raises ValueError for a URL that will not do.
    """
    options = Options(parse_url(url), timeout, connections, most, wait_replicas)
    if options.target.kind == "cluster":
        return RedisCluster(options, on_state)
    if options.target.kind == "sentinel":
        return RedisBehindSentinel(options, on_state)
    (address,) = options.target.addresses

    async def locate() -> Address:
        return address

    return Redis(options, on_state, locate)
