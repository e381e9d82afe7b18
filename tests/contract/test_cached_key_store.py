"""What the cache adds; that it keeps to the port is in ``test_key_store``."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from formgate_server.core.compile_key import compile_key
from formgate_server.core.errors import UnavailableError
from formgate_server.core.verdict import KeyRecord
from formgate_server.storage.wrappers import CachedKeyStore
from tests.support.stores import POLICY, account, digest, key


def record(epoch: int, key_id: str = "k1") -> KeyRecord:
    """Make a record of an epoch."""
    return compile_key(key(key_id), account(epoch=epoch), POLICY)


@dataclass
class Slow:
    """A KeyStore whose reads end when the test says so, with what the test says."""

    reads: list[asyncio.Future[KeyRecord | None]] = field(default_factory=list)

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        self.reads.append(asyncio.get_running_loop().create_future())
        return await self.reads[-1]


@dataclass
class Quick:
    """A KeyStore that finds the key whose digest is asked for, and counts."""

    epoch: int = 1
    reads: int = 0

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """See ``KeyStore``."""
        self.reads += 1
        return record(self.epoch, digests[0].rstrip(b"\0").decode())


def find(store: CachedKeyStore, at_least: int = 0) -> asyncio.Task[KeyRecord | None]:
    """Begin a call."""
    return asyncio.ensure_future(store.find([digest("k1")], at_least=at_least))


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_hit_reads_nothing() -> None:
    """A key that is known is not read again, until a higher epoch is asked for."""
    store = CachedKeyStore(quick := Quick())
    for at_least in (0, 1, 0):
        await store.find([digest("k1")], at_least=at_least)
    assert quick.reads == 1
    quick.epoch = 3
    for at_least in (2, 3, 0):
        found = await store.find([digest("k1")], at_least=at_least)
        assert found is not None
        assert found.epoch == 3
    assert quick.reads == 2


async def test_it_is_bounded() -> None:
    """The oldest entry leaves; to read one again makes it the newest."""
    store = CachedKeyStore(quick := Quick(), most=3)
    for key_id in ("k1", "k2", "k3"):
        await store.find([digest(key_id)])
    await store.find([digest("k1")], at_least=2)
    await store.find([digest("k4")])  # k2 leaves
    reads = quick.reads
    for key_id in ("k3", "k1", "k4"):
        await store.find([digest(key_id)])
    assert quick.reads == reads
    await store.find([digest("k2")])
    assert quick.reads == reads + 1


async def test_a_key_that_is_gone_is_forgotten() -> None:
    """Once a read has found nothing, the record of before is never served again."""
    store = CachedKeyStore(slow := Slow())
    for at_least, answer in ((0, record(1)), (2, None)):
        call = find(store, at_least)
        await settle()
        slow.reads[-1].set_result(answer)
        assert await call == answer
    call = find(store)
    await settle()
    assert len(slow.reads) == 3
    slow.reads[-1].set_result(None)
    assert await call is None


async def test_calls_at_once_share_a_read() -> None:
    """A hundred checks of a key that is not known cost one read."""
    store = CachedKeyStore(slow := Slow())
    calls = [find(store) for _ in range(100)]
    await settle()
    assert len(slow.reads) == 1
    slow.reads[0].set_result(answer := record(1))
    assert all(each is answer for each in await asyncio.gather(*calls))


async def test_a_read_under_way_may_be_too_old() -> None:
    """One that began before the call serves it only with the epoch that is asked for; else the next is shared."""
    store = CachedKeyStore(slow := Slow())
    first = find(store)
    await settle()
    later = [find(store, at_least=2) for _ in range(100)]
    await settle()
    assert len(slow.reads) == 1
    old, new = record(1), record(2)
    slow.reads[0].set_result(old)
    await settle()
    assert len(slow.reads) == 2
    slow.reads[1].set_result(new)
    assert await first is old
    assert all(each is new for each in await asyncio.gather(*later))


async def test_nothing_found_by_a_read_under_way_proves_nothing() -> None:
    """A key made while the read was under way is found by a check that begins after it was made."""
    store = CachedKeyStore(slow := Slow())
    first = find(store)
    await settle()
    later = find(store)  # the key is there by now, and the read may have begun too early to see it
    await settle()
    slow.reads[0].set_result(None)
    await settle()
    slow.reads[1].set_result(made := record(1))
    assert await first is None
    assert await later is made


async def test_a_flood_of_an_unknown_key_is_shared_too() -> None:
    """A hundred checks of a secret that is no key's cost two reads."""
    store = CachedKeyStore(slow := Slow())
    calls = [find(store) for _ in range(100)]
    for number in range(2):
        await settle()
        assert len(slow.reads) == number + 1
        slow.reads[number].set_result(None)
    assert await asyncio.gather(*calls) == [None] * 100
    assert len(slow.reads) == 2


async def test_who_is_cancelled_takes_no_one_along() -> None:
    """Neither the one whose read it is, nor one who waits for it."""
    store = CachedKeyStore(slow := Slow())
    leader, waiter, other = find(store), find(store), find(store)
    await settle()
    waiter.cancel()
    leader.cancel()
    await settle()
    assert (leader.cancelled(), waiter.cancelled(), len(slow.reads)) == (True, True, 2)
    slow.reads[1].set_result(answer := record(1))
    assert await other is answer


async def test_a_read_that_fails_is_told_to_who_shares_it() -> None:
    """UnavailableError to each, by two reads however many wait; the next call tries again."""
    store = CachedKeyStore(slow := Slow())
    calls = [find(store) for _ in range(10)]
    for number in range(2):
        await settle()
        slow.reads[number].set_exception(UnavailableError("away"))
    assert {type(each) for each in await asyncio.gather(*calls, return_exceptions=True)} == {UnavailableError}
    again = find(store)
    await settle()
    slow.reads[2].set_result(answer := record(1))
    assert await again is answer


async def test_a_fault_of_ours_is_not_hidden() -> None:
    """What the store raises by mistake comes out where it was raised; others read for themselves."""
    store = CachedKeyStore(slow := Slow())
    leader, other = find(store), find(store)
    await settle()
    slow.reads[0].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await leader
    await settle()
    slow.reads[1].set_result(answer := record(1))
    assert await other is answer


class World:
    """A key that comes and goes and changes, behind a store whose reads see any moment between begin and end."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.epoch = 1
        self.there = False
        self.moved = 0  # when it last came or went
        self._now = 0
        self._reads: list[tuple[KeyRecord, int]] = []  # what was read, and when that began
        self._cache = CachedKeyStore(self, most=2)

    def tick(self) -> int:
        """No two things happen at the same time."""
        self._now += 1
        return self._now

    async def find(self, digests: Sequence[bytes], *, at_least: int = 0) -> KeyRecord | None:
        """Be the store."""
        begun = self.tick()
        await self._while()
        found = record(self.epoch) if self.there else None
        await self._while()
        if self.chance.random() < 0.1:
            raise UnavailableError("away")
        if found is not None:
            self._reads.append((found, begun))
        return found

    async def _while(self) -> None:
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(0)

    async def call(self) -> None:
        """Be a check."""
        begun, wanted = self.tick(), self.chance.choice([0, self.epoch, self.epoch + 1])
        try:
            found = await self._cache.find([digest("k1")], at_least=wanted)
        except UnavailableError:
            return
        if found is None:
            assert not self.there or self.moved > begun
        else:
            assert found.epoch >= wanted or next(at for what, at in self._reads if what is found) > begun

    def change(self) -> None:
        """Let the key change, or come, or go."""
        self.epoch += 1
        if self.chance.random() < 0.3:
            self.there, self.moved = not self.there, self.tick()


@pytest.mark.parametrize("seed", range(40))
async def test_any_interleaving_keeps_to_the_port(seed: int) -> None:
    """What is returned has the epoch asked for or was read after the call began; "unknown" was true since then.

    The key changes, comes and goes; reads are slow or fail; calls are cancelled.
    """
    world = World(seed)
    calls: list[asyncio.Task[None]] = []
    for _ in range(300):
        event = world.chance.random()
        if event < 0.15:
            world.change()
        elif event < 0.6:
            calls.append(asyncio.ensure_future(world.call()))
        elif event < 0.65 and calls:
            world.chance.choice(calls).cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in results} <= {type(None), asyncio.CancelledError}
