"""Following the changes of others: what is read is published, and what a process knows of the database."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from formgate_server.core.errors import CountersUnavailableError, UnavailableError
from formgate_server.core.follow import Follow
from formgate_server.core.freshness import Freshness
from formgate_server.core.ports import News

STALENESS, GRACE = 30.0, 600.0


class Seconds:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Database:
    """The Epochs port: what it tells next, or that it is away."""

    def __init__(self) -> None:
        self.news: dict[str, int] = {}
        self.asked: list[int | None] = []
        self.away = False
        self.thawed = asyncio.Event()
        self.thawed.set()

    async def since(self, moment: int | None) -> News:
        """See ``Epochs``."""
        self.asked.append(moment)
        await self.thawed.wait()
        if self.away:
            raise UnavailableError("The database is away.")
        return News(dict(self.news), len(self.asked))

    async def of(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """See ``Epochs``."""
        raise AssertionError("following asks for no single account")

    async def forget(self, before: int, most: int) -> int:
        """See ``Epochs``."""
        raise AssertionError("following forgets nothing")

    async def renew(self, after: str, most: int) -> Sequence[str]:
        """See ``Epochs``."""
        raise AssertionError("only a restore asks for this")


class Publications:
    """As much of a Limiter as is used."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []
        self.away = False

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter``."""
        if self.away:
            raise CountersUnavailableError("Redis is away.")
        self.done.append((account_id, epoch))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"following has no business with {name}")


class World:
    """A process that follows."""

    def __init__(self) -> None:
        self.clock = Seconds()
        self.database = Database()
        self.redis = Publications()
        self.told: list[bool] = []
        self.freshness = Freshness(
            self.clock, max_staleness=STALENESS, database_grace=GRACE, on_database=self.told.append
        )
        self.follow = Follow(self.database, self.redis, self.freshness, self.clock, patience=0.05)

    async def poll_at(self, seconds: float) -> None:
        """Poll so many seconds after the last move of the clock."""
        self.clock.now += seconds
        await self.follow.poll()


async def test_what_is_found_is_published_once() -> None:
    """The first poll asks for the time only, each next one from where the last ended; a repeat publishes nothing."""
    world = World()
    await world.poll_at(0)
    world.database.news = {"acme": 5, "other": 2}
    await world.poll_at(0.5)
    await world.poll_at(0.5)
    world.database.news = {"acme": 6, "other": 2}
    await world.poll_at(0.5)
    assert world.redis.done == [("acme", 5), ("other", 2), ("acme", 6)]
    assert world.database.asked == [None, 1, 2, 3]


async def test_it_is_published_anew_now_and_then() -> None:
    """What a counters' store lost without our seeing it comes back within seconds."""
    world = World()
    world.database.news = {"acme": 5}
    for _ in range(12):
        await world.poll_at(0.5)
    assert world.redis.done == [("acme", 5)] * 2


async def test_what_could_not_be_published_is_tried_again() -> None:
    """Also when the database tells it no longer; until then the process is not fresh."""
    world = World()
    world.database.news = {"acme": 5}
    world.redis.away = True
    await world.poll_at(0.5)
    world.database.news = {}
    for _ in range(4):
        await world.poll_at(10)
    assert (world.freshness.is_fresh, world.freshness.is_known) == (False, True)
    world.redis.away = False
    await world.poll_at(0.5)
    assert world.redis.done == [("acme", 5)]
    assert (world.freshness.is_fresh, world.freshness.is_known) == (True, True)


async def test_a_failed_poll_loses_nothing() -> None:
    """The next one asks from the same moment."""
    world = World()
    await world.poll_at(0.5)
    world.database.away = True
    await world.poll_at(0.5)
    world.database.away = False
    await world.poll_at(0.5)
    assert world.database.asked == [None, 1, 1]


async def test_a_database_that_is_frozen_is_away() -> None:
    """It is not waited for, and told once; it is back with the first poll that reads."""
    world = World()
    ups = []
    world.database.thawed.clear()
    for thaws in (False, False, True):
        if thaws:
            world.database.thawed.set()
        await world.poll_at(0.5)
        ups.append(world.freshness.database_up)
    assert ups == [False, False, True]
    assert world.told == [False, True]


async def test_how_long_what_is_known_lasts() -> None:
    """Without the database: 30 seconds by heart, 10 minutes by the counters' store; it is never extended by failing."""
    world = World()
    await world.poll_at(0)
    world.database.away = True
    await world.poll_at(STALENESS - 1)
    assert (world.freshness.is_known, world.freshness.is_within_grace) == (True, True)
    await world.poll_at(2)
    assert (world.freshness.is_known, world.freshness.is_within_grace) == (False, True)
    await world.poll_at(GRACE - STALENESS - 2)
    assert (world.freshness.is_known, world.freshness.is_within_grace) == (False, True)
    await world.poll_at(2)
    assert (world.freshness.is_known, world.freshness.is_within_grace) == (False, False)
    world.database.away = False
    await world.poll_at(0)
    assert (world.freshness.is_known, world.freshness.is_within_grace) == (True, True)


async def test_epochs_that_were_read_are_known_for_ever() -> None:
    """A key cached long ago may be older than any change of the last poll; epochs never go back."""
    world = World()
    world.database.news = {"acme": 5}
    await world.poll_at(0.5)
    world.database.news = {"acme": 4, "other": 2}
    await world.poll_at(0.5)
    assert [world.freshness.newest(each) for each in ("acme", "other", "nobody")] == [5, 2, 0]


async def test_a_fault_ends_no_following() -> None:
    """Whatever a poll raises, the next one comes; meanwhile the database counts as away; it is told once."""
    world = World()
    faults: list[Exception] = []
    broken, well = asyncio.Event(), asyncio.Event()

    async def since(moment: int | None) -> News:
        if len(faults) < 1 or not broken.is_set():
            broken.set()
            raise RuntimeError("permission denied")
        asyncio.get_running_loop().call_later(0.01, well.set)
        return News({}, 1)

    world.database.since = since  # type: ignore[method-assign]
    following = asyncio.create_task(world.follow.run(faults.append))
    await broken.wait()
    await asyncio.sleep(0.01)
    assert (world.told, len(faults)) == ([False], 1)
    async with asyncio.timeout(5):
        await well.wait()
    assert world.told == [False, True]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert len(faults) == 1
