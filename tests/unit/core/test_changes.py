"""Changes: committed and published, or neither, whatever becomes of the caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from formgate_server.core.changes import Changed, Changes
from formgate_server.core.errors import NotFoundError, UnavailableError
from formgate_server.core.model import Account, AccountState
from formgate_server.core.ports import Transaction
from formgate_server.storage.memory.registry import MemoryRegistry
from tests.support.clock import SettableClock
from tests.support.stores import AUDIT_KEYS

STALENESS = 30_000_000


class Gated(MemoryRegistry):
    """A registry whose commits wait for a gate, or fail."""

    def __init__(self) -> None:
        super().__init__(AUDIT_KEYS)
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See ``Registry``."""
        async with super().transaction() as transaction:
            yield transaction
            await self.gate.wait()
            if self.broken:
                raise UnavailableError("The database is away.")


class Publications:
    """As much of a Limiter as changes use; each publication waits for a gate, or fails."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.begun: list[tuple[str, int]] = []
        self.done: list[tuple[str, int]] = []
        self.watch: Callable[[], None] = lambda: None

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter``."""
        self.watch()
        self.begun.append((account_id, epoch))
        await self.gate.wait()
        if self.broken:
            raise UnavailableError("The counters are away.")
        self.done.append((account_id, epoch))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a change has no business with {name}")


class World:
    """An account to change."""

    def __init__(self) -> None:
        self.registry = Gated()
        self.limiter = Publications()
        self.clock = SettableClock(1_000)
        self.changes = Changes(self.registry, self.limiter, self.clock, max_staleness=STALENESS)
        self.registry.tables.accounts["acme"] = Account(
            account_id="acme",
            display_name="",
            policy="default",
            plan="standard",
            state=AccountState.ACTIVE,
            time_zone="",
            limits=(),
            epoch=1,
            version=1,
            create_time=0,
        )

    @property
    def epoch(self) -> int:
        """The epoch that is committed."""
        return self.registry.tables.accounts["acme"].epoch


@pytest.fixture
def world() -> World:
    """An account of epoch 1."""
    return World()


async def bump(transaction: Transaction) -> Changed[str]:
    """Change something that verdicts depend on."""
    return Changed("done", "acme", await transaction.raise_epoch("acme"))


async def quiet() -> None:
    """Let everything run that does not wait for the test."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_it_is_committed_then_published_then_answered(world: World) -> None:
    """In that order: the epoch is in the database when it is published, and the time is told last."""
    seen = []
    world.limiter.watch = lambda: seen.append(world.epoch)
    world.limiter.gate.clear()
    answer = asyncio.create_task(world.changes.apply(bump))
    await quiet()
    assert (seen, answer.done()) == ([2], False)
    world.clock.time = 2_000
    world.limiter.gate.set()
    effective = await answer
    assert (effective.result, effective.effective_time) == ("done", 2_000)
    assert world.limiter.done == [("acme", 2)]


async def test_nothing_is_published_for_what_no_verdict_depends_on(world: World) -> None:
    """Creating a key, for one."""

    async def create(_: Transaction) -> Changed[str]:
        return Changed("made", "acme", None)

    assert (await world.changes.apply(create)).result == "made"
    assert world.limiter.begun == []


async def test_a_repetition_that_changes_nothing_publishes_too(world: World) -> None:
    """Whoever repeats a call may do so because the first was cut off before it had published."""

    async def repeat(transaction: Transaction) -> Changed[None]:
        account = await transaction.account("acme")
        assert account is not None
        return Changed(None, "acme", account.epoch)

    await world.changes.apply(repeat)
    assert world.limiter.done == [("acme", 1)]


@pytest.mark.parametrize("where", ["before it has begun", "before the commit", "between commit and publication"])
async def test_a_caller_that_goes_away_takes_no_change_along(world: World, where: str) -> None:
    """Once called, a change is committed and published, and ``finish`` waits until it is."""
    if where == "before the commit":
        world.registry.gate.clear()
    if where == "between commit and publication":
        world.limiter.gate.clear()
    answer = asyncio.create_task(world.changes.apply(bump))
    await asyncio.sleep(0)  # it has been called
    if where != "before it has begun":
        await quiet()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    finished = asyncio.create_task(world.changes.finish())
    await quiet()
    assert finished.done() == (where == "before it has begun")
    world.registry.gate.set()
    world.limiter.gate.set()
    await finished
    assert (world.epoch, world.limiter.done) == (2, [("acme", 2)])


async def test_finish_waits_for_those_that_begin_while_it_waits(world: World) -> None:
    """Calls that are being drained may still begin a change."""
    world.limiter.gate.clear()
    first = asyncio.create_task(world.changes.apply(bump))
    await quiet()
    finished = asyncio.create_task(world.changes.finish())
    await quiet()
    world.registry.gate.clear()
    second = asyncio.create_task(world.changes.apply(bump))
    await quiet()
    world.limiter.gate.set()
    await quiet()
    assert (first.done(), finished.done()) == (True, False)
    world.registry.gate.set()
    await asyncio.gather(second, finished)
    assert world.limiter.done == [("acme", 2), ("acme", 3)]


async def test_finish_with_nothing_under_way_returns(world: World) -> None:
    """Also after changes."""
    await world.changes.finish()
    await world.changes.apply(bump)
    await world.changes.finish()


async def test_a_refused_change_is_undone_and_told(world: World) -> None:
    """What it raises reaches the caller; nothing is committed or published, and the next change goes through."""

    async def refuse(transaction: Transaction) -> Changed[None]:
        await transaction.raise_epoch("acme")
        raise NotFoundError("There is none.")

    with pytest.raises(NotFoundError):
        await world.changes.apply(refuse)
    assert (world.epoch, world.limiter.begun) == (1, [])
    await world.changes.apply(bump)
    assert world.epoch == 2


async def test_a_failed_commit_publishes_nothing(world: World) -> None:
    """UNAVAILABLE, nothing half done."""
    world.registry.broken = True
    with pytest.raises(UnavailableError):
        await world.changes.apply(bump)
    assert (world.epoch, world.limiter.begun) == (1, [])


async def test_a_change_that_could_not_be_published_is_in_effect_later(world: World) -> None:
    """It is committed, so it is no failure; but nobody is told that checks know of it which need not."""
    world.limiter.broken = True
    changed = await world.changes.apply(bump)
    assert (world.epoch, changed.effective_time) == (2, world.clock.now() + STALENESS)
    world.limiter.broken = False
    assert (await world.changes.apply(bump)).effective_time == world.clock.now()


@pytest.mark.parametrize("store", ["registry", "limiter"])
async def test_a_failure_that_nobody_waits_for_is_no_warning(world: World, store: str) -> None:
    """The caller has gone away, then the change fails: it is over, and the loop has nothing to complain of."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    broken = getattr(world, store)
    broken.gate.clear()
    broken.broken = True
    answer = asyncio.create_task(world.changes.apply(bump))
    await quiet()
    answer.cancel()
    broken.gate.set()
    await world.changes.finish()
    await asyncio.gather(answer, return_exceptions=True)
    del answer
    await quiet()
    assert complaints == []


async def test_concurrent_changes_publish_each_its_own_epoch(world: World) -> None:
    """None is lost, none twice, whatever the order in which they get to it."""
    await asyncio.gather(*(world.changes.apply(bump) for _ in range(20)))
    assert sorted(world.limiter.done) == [("acme", epoch) for epoch in range(2, 22)]
