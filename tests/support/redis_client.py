"""Our own Redis client in tests: what it was told, and a script whose every run leaves a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from formgate_server.storage.redis.client import RedisClient, connect
from formgate_server.storage.redis.errors import LostAnswer, StoreUnavailable
from formgate_server.storage.redis.script import Script

COUNT = Script("count", "return {redis.call('INCR', KEYS[1]), ARGV[1]}")
"""Counts its runs, and gives back its argument."""

TIMEOUT = 0.25


class States:
    """What ``on_state`` was told."""

    def __init__(self) -> None:
        self.told: list[tuple[bool, str]] = []

    def __call__(self, up: bool, detail: str) -> None:  # noqa: FBT001 - as the client calls it
        """Take it down."""
        self.told.append((up, detail))

    @property
    def ups(self) -> list[bool]:
        """The changes, without the details."""
        return [up for up, _ in self.told]

    @property
    def up(self) -> bool:
        """Whether it is up by the last that was told."""
        return bool(self.told) and self.told[-1][0]


@asynccontextmanager
async def connected(url: str, states: States | None = None, **options: Any) -> AsyncIterator[RedisClient]:
    """A client that is up when entered, and closed when left."""
    states = states or States()
    client = connect(url, **{"timeout": TIMEOUT, "on_state": states, **options})
    try:
        await until(lambda: states.up, "the client is up")
        yield client
    finally:
        await client.close()


async def until(true: Callable[[], object], what: str, seconds: float = 10) -> None:
    """Return when ``true()`` is; AssertionError, saying ``what``, after ``seconds``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not true():
        assert loop.time() < deadline, f"{what}: not within {seconds:g} s"
        await asyncio.sleep(0.005)


async def count(client: RedisClient, account: str = "a", word: object = "", *, repeatable: bool = False) -> Any:
    """Run ``COUNT`` on an account's key."""
    return await client.run(COUNT, account, [f"fg:{{{account}}}:n"], [str(word)], repeatable=repeatable)


async def heals(client: RedisClient, account: str = "a", seconds: float = 10) -> None:
    """Return when a request goes through again; AssertionError after ``seconds``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        with suppress(StoreUnavailable):
            await count(client, account)
            return
        assert loop.time() < deadline, f"not healed within {seconds:g} s"
        await asyncio.sleep(0.02)


class Tally:
    """How requests ended: answered, surely not run, or perhaps run."""

    def __init__(self, outcomes: Sequence[Any]) -> None:
        self.answered = [each for each in outcomes if not isinstance(each, BaseException)]
        self.lost = [each for each in outcomes if isinstance(each, LostAnswer)]
        self.refused = [
            each for each in outcomes if isinstance(each, StoreUnavailable) and not isinstance(each, LostAnswer)
        ]
        assert len(self.answered) + len(self.lost) + len(self.refused) == len(outcomes), outcomes
