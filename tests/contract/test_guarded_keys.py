"""What the guard lets through to the store: known keys always, others as often as is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import structlog

from formgate_server.core.attempts import Attempts
from formgate_server.core.compile_key import compile_key
from formgate_server.core.errors import UnavailableError
from formgate_server.core.ports import TooManyAttempts
from formgate_server.core.verdict import KeyRecord
from formgate_server.storage import guard
from formgate_server.storage.guard import GuardedKeys
from formgate_server.storage.wrappers import CachedKeyStore
from tests.support.stores import POLICY, account, digest, key

HERE, THERE = "192.0.2.1", "192.0.2.2"
GOOD = [digest("good")]


@dataclass
class World:
    """A guard over a cache over a store that counts its reads, with a clock that stands still."""

    per_address: int | None = 10
    in_all: int = 100
    there: set[bytes] = field(default_factory=lambda: {GOOD[0]})
    now: float = 0.0
    reads: int = 0
    under_way: int = 0
    most_under_way: int = 0
    epoch: int = 1
    held: asyncio.Event | None = None
    away: bool = False

    def __post_init__(self) -> None:
        self.attempts = Attempts(lambda: int(self.now * 1e9), per_address=self.per_address, in_all=self.in_all)
        self.store = CachedKeyStore(self)
        self.guard = GuardedKeys(self.store, self.attempts)

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """Be the store."""
        self.reads += 1
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await (asyncio.sleep(0) if self.held is None else self.held.wait())
        finally:
            self.under_way -= 1
        if self.away:
            raise UnavailableError("away")
        return compile_key(key(), account(epoch=self.epoch), POLICY) if digests[0] in self.there else None

    async def ask(self, name: str, source_ip: str = HERE, at_least: int = 0) -> str:
        """Return how asking for a key ends."""
        try:
            found = await self.guard.find([digest(name)], at_least=at_least, source_ip=source_ip)
        except UnavailableError as error:
            return error.reason
        return "found" if isinstance(found, KeyRecord) else type(found).__name__

    async def flood(self, number: int, source_ip: str = HERE) -> list[str]:
        """Ask for keys that there are not, one after the other; returns how each ended."""
        return [await self.ask(f"unknown {self.reads} {each}", source_ip) for each in range(number)]


async def test_an_address_over_its_budget_costs_no_read() -> None:
    """After its unknown keys of a minute it is told so, with when to come back, and the store is not asked."""
    world = World()
    assert await world.flood(10) == ["NoneType"] * 10
    assert await world.flood(100) == ["TooManyAttempts"] * 100
    assert world.reads == 10
    refused = await world.guard.find(GOOD, source_ip=HERE)
    assert refused == TooManyAttempts(6_000_000)
    world.now += 6
    assert await world.flood(2) == ["NoneType", "TooManyAttempts"]
    assert world.reads == 11


async def test_known_keys_and_other_addresses_go_on() -> None:
    """A key that this process knows is found from the flooding address too; others are looked for from elsewhere."""
    world = World()
    assert await world.ask("good") == "found"
    await world.flood(50)
    reads = world.reads
    assert await world.ask("good") == "found"
    assert world.reads == reads
    world.there.add(digest("other"))
    assert await world.ask("other", HERE) == "TooManyAttempts"
    assert await world.ask("other", THERE) == "found"
    assert await world.ask("other", HERE) == "found"


async def test_a_known_key_of_another_epoch_is_always_read() -> None:
    """Revocation does not wait for a flood: what a check must read anew is read, whatever is used up."""
    world = World()
    await world.ask("good")
    for number in range(100):
        await world.flood(4, f"10.0.0.{number}")
    assert await world.ask("nobody's", THERE) == "TOO_MANY_UNKNOWN_KEYS"
    reads, world.epoch = world.reads, 5
    record = await world.guard.find(GOOD, at_least=5, source_ip=HERE)
    assert isinstance(record, KeyRecord)
    assert (record.epoch, world.reads) == (5, reads + 1)
    world.there.clear()
    assert await world.guard.find(GOOD, at_least=6, source_ip=HERE) is None


async def test_found_keys_are_no_attempts() -> None:
    """Any number of good keys from one address, none known yet: all are looked for, and none counts."""
    world = World()
    names = [f"good {number}" for number in range(1_000)]
    world.there = {digest(name) for name in names}
    assert set(await asyncio.gather(*map(world.ask, names))) == {"found"}
    assert world.reads == 1_000
    assert len(world.attempts) == 0
    assert not world.attempts.exhausted("")


async def test_in_all_no_more_than_allowed_reach_the_store() -> None:
    """From however many addresses: what is over the budget is undecided, never denied, and costs no read."""
    world = World(in_all=100)
    told: list[str] = []
    for second in range(10):
        world.now = float(second)
        asked = [world.ask(f"unknown {second} {each}", f"10.{second}.{each >> 8}.{each & 255}") for each in range(900)]
        told += await asyncio.gather(*asked)
    assert set(told) == {"NoneType", "TOO_MANY_UNKNOWN_KEYS"}
    assert world.reads == told.count("NoneType")
    assert 900 <= world.reads <= 100 * (9 + 2)
    assert world.most_under_way == 32


async def test_a_concurrent_flood_of_one_address_is_bounded() -> None:
    """A thousand at once from one address: what is under way when its budget is used up is all that is over it."""
    world = World()
    told = await asyncio.gather(*(world.ask(f"unknown {each}") for each in range(1_000)))
    assert set(told) == {"NoneType", "TooManyAttempts"}
    assert 10 <= world.reads <= 10 + world.attempts.at_once
    world.now += 6
    assert await world.flood(1) == ["TooManyAttempts"]  # what was over it is paid back first


async def test_a_store_that_stands_still_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many wait, the others are told at once; those that give up make room; then all goes on."""
    monkeypatch.setattr(guard, "_PATIENCE_SECONDS", 60.0)  # a slow machine is no store that stands still
    world = World(held=asyncio.Event())
    calls = [
        asyncio.ensure_future(world.ask(f"unknown {each}", f"10.0.{each >> 8}.{each & 255}")) for each in range(15_000)
    ]
    for _ in range(5):
        await asyncio.sleep(0)
    waiting = [call for call in calls if not call.done()]
    assert len(waiting) == guard._MOST_WAITING + world.attempts.at_once
    assert {call.result() for call in calls if call.done()} == {"TOO_MANY_UNKNOWN_KEYS"}
    assert world.reads == world.attempts.at_once
    for call in waiting[-500:]:
        call.cancel()
    await asyncio.sleep(0)
    more = [asyncio.ensure_future(world.ask(f"more {each}", THERE)) for each in range(400)]
    await asyncio.sleep(0)
    assert not any(call.done() for call in more)
    assert world.held is not None
    world.held.set()
    results = await asyncio.gather(*calls, *more, return_exceptions=True)
    assert {type(each) for each in results} == {str, asyncio.CancelledError}
    assert world.guard._waiting == 0
    world.now += 100
    assert await world.ask("good") == "found"


async def test_a_store_that_is_away_says_so() -> None:
    """It is no attempt of the address, but counts in all: a store in trouble is not asked more often for that."""
    world = World(in_all=50, away=True)
    told = await world.flood(200)
    assert set(told) == {"STORE_UNAVAILABLE", "TOO_MANY_UNKNOWN_KEYS"}
    assert world.reads == told.count("STORE_UNAVAILABLE") == 100 - world.attempts.at_once
    assert len(world.attempts) == 0
    world.away, world.now = False, 1.0
    assert await world.ask("good") == "found"


async def test_who_gives_up_has_cost_a_read() -> None:
    """A flood of calls that are broken off at once can not reach the store more often than others."""
    world = World(in_all=50, held=asyncio.Event())
    for each in range(200):
        call = asyncio.ensure_future(world.ask(f"unknown {each}"))
        for _ in range(3):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert world.reads == 100 - world.attempts.at_once
    assert world.under_way == 0


@pytest.mark.parametrize("source_ip", ["", HERE])
async def test_two_processes_have_a_budget_each(source_ip: str) -> None:
    """What one has used up is none of the other's: budgets are in memory, by process."""
    one, other = World(per_address=None), World(per_address=None)
    await one.flood(500, source_ip)
    assert await one.ask("good", source_ip) == "TOO_MANY_UNKNOWN_KEYS"
    assert await other.ask("good", source_ip) == "found"


async def test_a_flood_is_logged_once_a_minute() -> None:
    """One line says it, however many are refused, and it names no key and no address."""
    world = World(per_address=None)
    with structlog.testing.capture_logs() as lines:
        await world.flood(1_000)
    assert [line["log_level"] for line in lines] == ["warning"]
    assert HERE not in str(lines)


@pytest.mark.parametrize("known", [False, True])
async def test_nobody_waits_for_a_frozen_store(monkeypatch: pytest.MonkeyPatch, *, known: bool) -> None:
    """With reads under way that never end: each check is undecided in time, and whoever queues for one is at once."""
    monkeypatch.setattr(guard, "_PATIENCE_SECONDS", 0.02)
    world = World(in_all=1_000)
    if known:
        await world.ask("good")
    world.held = asyncio.Event()
    names = ["good"] if known else [f"unknown {each}" for each in range(5 * world.attempts.at_once)]
    async with asyncio.timeout(5):
        told = await asyncio.gather(*(world.ask(each, at_least=2 if known else 0) for each in names))
    assert set(told) == {"STORE_UNAVAILABLE"}
    assert world.reads <= 1 + world.attempts.at_once
    assert world.under_way == 0
    world.held = None
    assert await world.ask("another") == "NoneType"


async def test_the_newest_is_no_read_that_was_under_way() -> None:
    """A process that may not have heard of a change asks for a key: what an older read found is not told."""
    world = World(held=asyncio.Event())
    older = asyncio.ensure_future(world.guard.find(GOOD))
    await asyncio.sleep(0)
    newer = asyncio.ensure_future(world.guard.find(GOOD, newest=True))
    joins = asyncio.ensure_future(world.guard.find(GOOD))
    await asyncio.sleep(0)
    assert world.held is not None
    world.held.set()
    found = await asyncio.gather(older, newer, joins)
    assert all(isinstance(each, KeyRecord) for each in found)
    assert world.reads == 2
