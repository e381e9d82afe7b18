"""A Redis is used only while it is fit: looked at when it comes, and when it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from formgate_server.storage.redis.errors import StoreUnavailable
from formgate_server.storage.redis.fitness import Findings, Fitness, FitRedis
from formgate_server.storage.redis.preflight import Facts
from formgate_server.storage.redis.script import Script
from formgate_server.storage.redis.url import Address

EVICTS = Facts(Address("redis", 6379), "7.2.4", "allkeys-lru", 0, replid_in_scripts=True)
FIT = Facts(Address("redis", 6379), "7.2.4", "noeviction", 0, replid_in_scripts=True)
HIDES = Facts(Address("redis", 6379), "7.2.4", "noeviction", 0, replid_in_scripts=False)
SCRIPT = Script("some", "return 1")


class Client:
    """A RedisClient that answers everything."""

    connections = 1
    under_way = 0

    async def run(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> Any:
        """See ``RedisClient``."""
        return 1

    def run_soon(
        self,
        script: Script,
        slot: str,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int],
        *,
        repeatable: bool,
    ) -> asyncio.Future[Any]:
        """See ``RedisClient``."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_result(1)
        return answer

    async def command(self, *args: str | bytes | int, slot: str | None = None) -> Any:
        """See ``RedisClient``."""
        return 1

    def place(self, slot: str) -> object:
        """See ``RedisClient``."""
        return slot

    async def close(self) -> None:
        """See ``RedisClient``."""


class World:
    """A Redis that a test changes, and what is made of it."""

    def __init__(self, found: Facts | None) -> None:
        self.facts: Facts | None = found
        self.told: list[Findings] = []
        self.looks = 0
        self.fitness = Fitness(
            self.look, None if found is None else Findings.of([found]), self.told.append, retry_seconds=0.001
        )
        self.client = FitRedis(Client(), self.fitness)

    async def look(self) -> Findings:
        """Look; None: it is away."""
        self.looks += 1
        if self.facts is None:
            raise StoreUnavailable("away")
        return Findings.of([self.facts])

    async def looked(self, times: int = 3) -> None:
        """Wait until it was looked at some more."""
        until = self.looks + times
        for _ in range(5_000):
            if self.looks >= until or self.fitness._looking is None:
                return
            await asyncio.sleep(0.001)
        raise AssertionError("nobody looks")

    async def is_used(self) -> bool:
        """Ask in each way that there is; all end alike."""
        asked = (
            self.client.run(SCRIPT, "a", (), (), repeatable=False),
            self.client.run_soon(SCRIPT, "a", (), (), repeatable=False),
            self.client.command("PING"),
        )
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        (outcome,) = {type(each) for each in outcomes}
        assert outcome in {int, StoreUnavailable}
        return outcome is int


@pytest.fixture
async def absent() -> AsyncIterator[World]:
    """A Redis that is away when the server starts."""
    world = World(None)
    yield world
    await world.client.close()


async def test_one_that_is_away_at_the_start_is_looked_at_before_it_is_used(absent: World) -> None:
    """Not a request goes to it before; then all do, and that is told."""
    assert not await absent.is_used()
    await absent.looked()
    assert not await absent.is_used()
    absent.facts = FIT
    await absent.looked()
    assert await absent.is_used()
    assert absent.told == [Findings((), ())]


async def test_one_that_is_not_fit_is_not_used_until_it_is_mended(absent: World) -> None:
    """It is told once what is wrong with it, however often it is looked at; once mended it is used."""
    absent.facts = EVICTS
    await absent.looked(20)
    assert not await absent.is_used()
    (found,) = absent.told
    assert "noeviction" in found.problems[0]
    absent.facts = FIT
    await absent.looked()
    assert await absent.is_used()
    assert absent.told[1:] == [Findings((), ())]


async def test_one_that_hides_its_replication_id_is_used_and_told(absent: World) -> None:
    """Whoever goes by that id learns it before the first request."""
    absent.facts = HIDES
    await absent.looked()
    assert await absent.is_used()
    assert absent.told == [Findings((), ("redis:6379",))]


async def test_one_that_comes_back_is_looked_at_again() -> None:
    """It may be another. One that is as it was is not told; while it is away nothing is known against it."""
    world = World(FIT)
    assert await world.is_used()
    world.fitness.came()
    await world.looked()
    world.facts = None
    world.fitness.came()
    await world.looked()
    assert await world.is_used()
    assert world.told == []
    world.facts = EVICTS
    await world.looked()
    assert not await world.is_used()
    assert len(world.told) == 1
    await world.client.close()
