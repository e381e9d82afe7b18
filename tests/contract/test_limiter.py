"""The Limiter port: epochs, charges and the marks that let counters outlive their store, for every backend.

A backend here keeps its marks through the test's own Reservations, which sees every write before it is durable and
after. Some tests look at a limiter at the very moment at which it answers: no other task runs between a backend's
decision and the answer in the caller's hands; Redis decides in the order in which it is asked, and answers in it.

Exempt, ``redis`` and ``redis-cluster``: what a close writes, for it writes nothing. The counters stay where they are,
and other processes go on counting there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import (
    Counter,
    State,
    add,
    give_back,
    moment,
    outlives_its_store,
    spend,
    standing,
    up_to_now,
)
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling
from formgate_server.core.ports import Charge, Charged, EpochMissing, EpochMoved, Limiter, Reserved
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.redis.limiter import RedisLimiter
from tests.support import counters as redis_counters
from tests.support.clock import DAY, HOUR, MINUTE, SECOND, TODAY, SettableClock
from tests.support.counters import TimedClient
from tests.support.redis import RedisCluster, RedisServer
from tests.support.soak import SOAK

histories = settings(max_examples=12_000 if SOAK else 600, deadline=None, derandomize=not SOAK, print_blob=SOAK)
histories_in_redis = settings(histories, max_examples=2_000 if SOAK else 60)
"""Each step is a round trip, and each look several."""
REMEMBERED = 60 * SECOND
WIDE = 10**15
"""An amount so large that what is left of it tells what is used, however much that is."""

DAILY, MONTHLY = Calendar(Period.DAY), Calendar(Period.MONTH)
HOURLY, MINUTELY = Rolling(HOUR), Rolling(MINUTE)
Per = Rolling | Calendar | Lifetime
ENDS: tuple[Per, ...] = (DAILY, MONTHLY, Lifetime(), HOURLY)
"""What outlives the counters' store."""


class Marks:
    """The Reservations port: durable in an instant, which a test can put off, forbid, or look at."""

    def __init__(self, held: Mapping[str, Reserved] | None = None) -> None:
        self.held = dict(held or {})
        self.saves = 0
        self.loads = 0
        self.patience = 0
        """How many steps of the event loop a write takes before it is durable, and after."""
        self.broken: type[BaseException] | None = None
        self.gate: asyncio.Event | None = None
        """Writes wait for it."""
        self.look: Callable[[], Awaitable[None]] | None = None
        """Called before a write is durable, and after."""

    async def load(self, counter_ids: Collection[str]) -> Mapping[str, Reserved]:
        """See ``Reservations``."""
        self.loads += 1
        await self._wait()
        return {each: self.held[each] for each in counter_ids if each in self.held}

    async def save(self, marks: Mapping[str, Reserved]) -> None:
        """See ``Reservations``."""
        self.saves += 1
        if self.gate is not None:
            await self.gate.wait()
        await self._wait()
        if self.look is not None:
            await self.look()
        self.held |= marks
        if self.look is not None:
            await self.look()
        for _ in range(self.patience):
            await asyncio.sleep(0)

    async def advance(self, marks: Mapping[str, Reserved], *, insist: bool = False) -> Collection[str]:
        """See ``Reservations``."""
        higher = {each: mark for each, mark in marks.items() if mark.serial > self.serial(each)}
        await self.save(higher)
        return set(higher)

    async def forget(self, before: int, most: int) -> int:
        """See ``Reservations``."""
        raise AssertionError("a limiter forgets no marks")

    def serial(self, counter_id: str) -> int:
        """Return the serial of the mark that is there; -1: there is none."""
        return self.held[counter_id].serial if counter_id in self.held else -1

    async def _wait(self) -> None:
        for _ in range(self.patience):
            await asyncio.sleep(0)
        if self.broken is UnavailableError:
            raise UnavailableError("The database is away.")
        if self.broken is not None:
            raise self.broken


class Closable(Limiter, Protocol):
    """A limiter that can write its counters before it ends."""

    async def close(self) -> None:
        """Write every counter as it stands."""
        ...


URLS: dict[str, str] = {}
"""Where the servers are, by the kind of limiter."""
BACKENDS = ("memory", "redis", "redis-cluster")
_prefixes = count()


@dataclass
class World:
    """A limiter, what it stands on, and what it told."""

    backend: str
    clock: SettableClock = field(default_factory=SettableClock)
    marks: Marks = field(default_factory=Marks)
    told: list[bool] = field(default_factory=list)
    """Every word about being degraded."""
    client: TimedClient | None = None

    def __post_init__(self) -> None:
        self.limiter = self.start()

    def start(self, marks: Marks | None = None, patience: float = 3_600) -> Closable:
        """Start a limiter whose counters are lost, over other marks where given."""
        if self.backend != "memory":
            return self.join(f"test-{next(_prefixes)}", marks, patience)
        return MemoryLimiter(
            self.clock,
            marks or self.marks,
            on_degraded=self.told.append,
            retry_seconds=0,
            patience_seconds=patience,
        )

    def join(self, prefix: str, marks: Marks | None = None, patience: float = 3_600) -> RedisLimiter:
        """Start a limiter over the counters in Redis that begin with ``prefix``."""
        if self.client is None:
            self.client = TimedClient(redis_counters.connected(URLS[self.backend]), self.clock)
        return RedisLimiter(
            self.client,
            marks or self.marks,
            self.clock,
            prefix=prefix,
            on_degraded=self.told.append,
            retry_seconds=0,
            patience_seconds=patience,
        )

    async def used_after_a_crash(self, counters: Sequence[Counter], *, seen_as: int = WIDE) -> list[int]:
        """Return what would count as used if the process ended now; limits are looked at with ``seen_as``' amount."""
        other = self.start(Marks(self.marks.held))
        return await used(other, [replace_amount(counter, seen_as) for counter in counters])


@pytest.fixture(params=BACKENDS)
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The kind of limiter."""
    yield running(request, request.param)
    await redis_counters.end()


def running(request: pytest.FixtureRequest, name: str) -> str:
    """Return the kind of limiter, its servers running."""
    if name == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        URLS[name] = server.url()
    elif name == "redis-cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        URLS[name] = cluster.url()
    return name


def run(course: Coroutine[Any, Any, None]) -> None:
    """Run a course in a loop of its own."""

    async def run_and_end() -> None:
        try:
            await course
        finally:
            await redis_counters.end()

    asyncio.run(run_and_end())


writes_at_the_end = pytest.mark.parametrize("backend", ["memory"], indirect=True)
"""Not ``redis`` and ``redis-cluster``: their counters stay where they are, and a close writes nothing."""


@pytest.fixture
async def world(backend: str) -> World:
    """A limiter that knows the epoch 1 of the account ``acme``."""
    made = World(backend)
    await seed(made.limiter)
    return made


def counter(amount: int | None = 100, per: Per = MINUTELY, name: str = "limit", key: str = "") -> Counter:
    """Make a counter of the account, or of ``key``."""
    owner = f"acme/{key}" if key else "acme"
    return Counter(f"{owner}/{name}", Limit(name, Holder.KEY if key else Holder.ACCOUNT, amount, per), "UTC")


def replace_amount(of: Counter, amount: int | None) -> Counter:
    """Return the same counter under a limit of another amount."""
    return of._replace(limit=replace(of.limit, amount=amount))


async def seed(limiter: Limiter, epoch: int = 1) -> None:
    """Have the limiter know the account's epoch."""
    missing = await limiter.charge(Charge("acme", epoch, "k1"))
    assert isinstance(missing, EpochMissing)
    await limiter.seed("acme", epoch, missing.incarnation)


async def charge(
    limiter: Limiter,
    counters: Sequence[Counter],
    cost: int = 1,
    request_id: str = "",
    key: str = "k1",
    epoch: int = 1,
) -> Charged:
    """Charge under an epoch that is known to be right."""
    outcome = await limiter.charge(Charge("acme", epoch, key, tuple(counters), cost, request_id))
    assert isinstance(outcome, Charged)
    return outcome


async def used(limiter: Limiter, counters: Sequence[Counter]) -> list[int]:
    """Return what counts as used now, by a limiter that may not know the epoch yet."""
    if isinstance(await limiter.charge(Charge("acme", 1, "k1")), EpochMissing):
        await seed(limiter)
    looked = await charge(limiter, counters, cost=0)
    return [(of.limit.amount or 0) - told.remaining for of, told in zip(counters, looked.standings, strict=True)]


async def quiet(limit: int = 200) -> None:
    """Let everything run that does not wait for the test, and wait for what Redis is asked."""
    while True:
        for _ in range(limit):
            await asyncio.sleep(0)
        if not redis_counters.under_way:
            return
        await redis_counters.answered()


async def begun(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Start a call, and let it run as far as it comes."""
    task = asyncio.create_task(coroutine)
    await quiet()
    return task


# ------------------------------------------------------------------------------------------------------------ epochs


async def test_a_missing_epoch_decides_nothing(backend: str) -> None:
    """Nothing is charged, whatever the charge says the epoch is, until somebody has seeded it."""
    limiter = World(backend).limiter
    limits = (counter(amount=1),)
    for epoch in (0, 1, 2**63 - 1):
        assert isinstance(await limiter.charge(Charge("acme", epoch, "k1", limits, 1)), EpochMissing)
    await seed(limiter)
    assert (await charge(limiter, limits)).denied is None


async def test_a_seed_from_before_a_publication_fails(backend: str) -> None:
    """A database read that began before a change was published may not undo it by being slow."""
    limiter = World(backend).limiter
    missing = await limiter.charge(Charge("acme", 1, "k1"))
    assert isinstance(missing, EpochMissing)
    await limiter.publish("acme", 2)
    await limiter.seed("acme", 1, missing.incarnation)
    anew = await limiter.charge(Charge("acme", 1, "k1"))
    assert isinstance(anew, EpochMissing)
    assert anew.incarnation != missing.incarnation


async def test_publishing_into_a_missing_epoch_sets_none(backend: str) -> None:
    """What is published may be older than what the database holds by now: only a read of it may seed."""
    limiter = World(backend).limiter
    await limiter.publish("acme", 5)
    missing = await limiter.charge(Charge("acme", 5, "k1"))
    assert isinstance(missing, EpochMissing)
    await limiter.seed("acme", 6, missing.incarnation)
    assert await limiter.charge(Charge("acme", 5, "k1")) == EpochMoved(6)


async def test_every_publication_into_a_missing_epoch_outdates_all_seeds(backend: str) -> None:
    """The incarnation of one publication is not that of the next."""
    limiter = World(backend).limiter
    incarnations = set()
    for epoch in range(1, 5):
        await limiter.publish("acme", epoch)
        missing = await limiter.charge(Charge("acme", epoch, "k1"))
        assert isinstance(missing, EpochMissing)
        incarnations.add(missing.incarnation)
    assert len(incarnations) == 4


async def test_those_who_find_the_epoch_missing_together_share_an_incarnation(backend: str) -> None:
    """Else each would outdate the other's seed, for ever."""
    limiter = World(backend).limiter
    first = await limiter.charge(Charge("acme", 1, "k1"))
    assert await limiter.charge(Charge("acme", 1, "k2")) == first


async def test_a_seed_is_of_its_own_account(backend: str) -> None:
    """Another account's incarnation seeds nothing, and a seed leaves another account's epoch missing."""
    limiter = World(backend).limiter
    mine = await limiter.charge(Charge("acme", 1, "k1"))
    other = await limiter.charge(Charge("other", 1, "k1"))
    assert isinstance(mine, EpochMissing)
    assert isinstance(other, EpochMissing)
    await limiter.seed("acme", 1, other.incarnation)
    assert isinstance(await limiter.charge(Charge("acme", 1, "k1")), EpochMissing)
    await limiter.seed("other", 1, other.incarnation)
    assert isinstance(await limiter.charge(Charge("acme", 1, "k1")), EpochMissing)
    assert isinstance(await limiter.charge(Charge("other", 1, "k1")), Charged)


async def test_a_second_seed_does_nothing(backend: str) -> None:
    """Whoever seeds first has seeded; neither a lower nor a higher epoch gets in by the used incarnation."""
    limiter = World(backend).limiter
    missing = await limiter.charge(Charge("acme", 3, "k1"))
    assert isinstance(missing, EpochMissing)
    for epoch in (3, 2, 4):
        await limiter.seed("acme", epoch, missing.incarnation)
    assert await limiter.charge(Charge("acme", 2, "k1")) == EpochMoved(3)
    assert isinstance(await limiter.charge(Charge("acme", 3, "k1")), Charged)


async def test_a_lower_epoch_is_told_the_present_one_and_charges_nothing(world: World) -> None:
    """When a publication has returned, no charge by an older key goes through."""
    limits = (counter(amount=1),)
    await world.limiter.publish("acme", 2)
    assert await world.limiter.charge(Charge("acme", 1, "k1", limits, 1)) == EpochMoved(2)
    assert (await charge(world.limiter, limits, epoch=2)).denied is None


async def test_a_late_publication_lowers_nothing(world: World) -> None:
    """A publisher that was overtaken by another does not bring an older state back."""
    await world.limiter.publish("acme", 10)
    await world.limiter.publish("acme", 9)
    assert await world.limiter.charge(Charge("acme", 9, "k1")) == EpochMoved(10)


async def test_a_higher_epoch_raises_the_present_one(world: World) -> None:
    """Who has read a newer state from the database need not wait for its publisher; older ones are out from there."""
    await charge(world.limiter, (), epoch=4)
    assert await world.limiter.charge(Charge("acme", 3, "k1")) == EpochMoved(4)


@histories
@given(st.lists(st.tuples(st.sampled_from(("publish", "charge")), st.integers(1, 9)), max_size=20))
def test_an_epoch_only_rises(calls: list[tuple[str, int]]) -> None:
    """Whatever is published and charged in whatever order, a charge goes through exactly by the highest so far."""

    async def run() -> None:
        limiter = World("memory").limiter
        await seed(limiter)
        highest = 1
        for call, epoch in calls:
            if call == "publish":
                await limiter.publish("acme", epoch)
                highest = max(highest, epoch)
                continue
            outcome = await limiter.charge(Charge("acme", epoch, "k1"))
            assert isinstance(outcome, Charged) if epoch >= highest else outcome == EpochMoved(highest)
            highest = max(highest, epoch)

    asyncio.run(run())


async def test_a_charge_that_waits_is_decided_by_the_epoch_at_its_end(world: World) -> None:
    """A change that returns while a check waits for its mark is not passed over by it, and it charges nothing."""
    world.marks.gate = asyncio.Event()
    limits = (counter(amount=5, per=DAILY),)
    waiting = await begun(world.limiter.charge(Charge("acme", 1, "k1", limits, 1)))
    assert not waiting.done()
    await world.limiter.publish("acme", 2)
    world.marks.gate.set()
    assert await waiting == EpochMoved(2)
    assert (await charge(world.limiter, limits, cost=5, epoch=2)).denied is None


# ----------------------------------------------------------------------------------------------------------- charges


async def test_all_limits_are_charged_or_none(world: World) -> None:
    """One full limit, wherever it stands among the others, keeps all of them as they were."""
    roomy = [counter(amount=100, name=f"roomy{number}", per=per) for number, per in enumerate((*ENDS, MINUTELY))]
    full = counter(amount=3, name="full")
    for place in range(len(roomy) + 1):
        limits = [*roomy[:place], full, *roomy[place:]]
        denied = await charge(world.limiter, limits, cost=4)
        assert denied.denied == full.limit
        assert [told.remaining for told in denied.standings] == [of.limit.amount for of in limits]
    assert await used(world.limiter, roomy) == [0] * len(roomy)


async def test_concurrent_charges_never_share_a_unit(world: World) -> None:
    """Of a thousand that come at once exactly the amount goes through, whether they must wait for a mark or not."""
    world.marks.patience = 3
    for per in (MINUTELY, DAILY):
        limits = (counter(amount=137, per=per, name=str(per)),)
        outcomes = await asyncio.gather(*(charge(world.limiter, limits) for _ in range(1_000)))
        assert sum(outcome.denied is None for outcome in outcomes) == 137


async def test_a_cost_of_0_looks_without_charging(world: World) -> None:
    """It is denied when nothing remains, and costs nothing either way, nor does it write a mark."""
    limits = (counter(amount=2, per=DAILY),)
    for _ in range(5):
        looked = await charge(world.limiter, limits, cost=0)
        assert (looked.denied, looked.standings[0].remaining) == (None, 2)
    assert world.marks.saves == 0
    await charge(world.limiter, limits, cost=2)
    looked = await charge(world.limiter, limits, cost=0)
    assert looked.denied == limits[0].limit
    assert looked.retry_after == DAY - world.clock.time % DAY


async def test_an_unlimited_one_is_never_full_and_needs_no_mark(world: World) -> None:
    """No amount: no denial, whatever it costs."""
    limits = (counter(amount=None, per=DAILY),)
    for _ in range(3):
        assert (await charge(world.limiter, limits, cost=2**62)).denied is None
    assert world.marks.saves == 0


async def test_a_changed_amount_counts_at_once_and_keeps_what_is_used(world: World) -> None:
    """Lowered below what is used it denies, raised it gives the difference: the counter is the same."""
    daily = counter(amount=10, per=DAILY)
    await charge(world.limiter, (daily,), cost=8)
    lowered = await charge(world.limiter, (replace_amount(daily, 5),))
    assert (lowered.denied is not None, lowered.standings[0].remaining) == (True, 0)
    raised = await charge(world.limiter, (replace_amount(daily, 20),), cost=12)
    assert (raised.denied, raised.standings[0].remaining) == (None, 0)


async def test_a_changed_time_zone_counts_from_the_next_period(world: World) -> None:
    """The period under way keeps its end; the next one ends as the new zone has it, and is counted as any other."""
    utc = counter(amount=3, per=DAILY)
    vienna = utc._replace(zone="Europe/Vienna")
    await charge(world.limiter, (utc,), cost=3)
    moved = await charge(world.limiter, (vienna,))
    assert moved.retry_after == 12 * HOUR
    world.clock.time = TODAY + DAY
    async with asyncio.timeout(10):
        anew = await charge(world.limiter, (vienna,), cost=3)
    assert (anew.denied, anew.standings[0].reset_time) == (None, TODAY + DAY + 23 * HOUR)
    assert (await charge(world.limiter, (vienna,))).denied is not None
    async with asyncio.timeout(10):
        await charge(world.limiter, (vienna,), cost=0)
    world.clock.time = TODAY + DAY + 23 * HOUR
    async with asyncio.timeout(10):
        assert (await charge(world.limiter, (vienna,), cost=3)).denied is None


# ------------------------------------------------------------------------------------------------- many charges at once


async def test_many_charges_are_each_its_own(world: World) -> None:
    """In their order: the first ones get what there is; a denial, another epoch, another account stop no other."""
    limits = (counter(amount=2),)
    many = [Charge("acme", 1, key, limits, 1) for key in ("k1", "k2", "k3")]
    many[1:1] = [Charge("acme", 0, "k1", limits, 1), Charge("other", 1, "k1", limits, 1), Charge("acme", 1, "k1")]
    first, old, missing, bare, second, third = await world.limiter.charge_many(many)
    assert (old, type(missing)) == (EpochMoved(1), EpochMissing)
    assert isinstance(first, Charged)
    assert isinstance(second, Charged)
    assert isinstance(third, Charged)
    assert [one.standings[0].remaining for one in (first, second, third)] == [1, 0, 0]
    assert (first.denied, second.denied, third.denied) == (None, None, limits[0].limit)
    assert bare == Charged(None, None, ())
    assert await world.limiter.charge_many([]) == []


async def test_many_charges_wait_only_for_their_own_marks(world: World) -> None:
    """Those that need none are charged though another's is not written yet, and all are told when it is."""
    world.marks.gate = asyncio.Event()
    quick, slow = (counter(per=MINUTELY, name="quick"),), (counter(per=DAILY, name="slow"),)
    await charge(world.limiter, quick)
    many = [Charge("acme", 1, "k1", limits, 1, "r1" if limits is slow else "") for limits in (slow, quick, slow)]
    waiting = await begun(world.limiter.charge_many(many))
    assert not waiting.done()
    assert await used(world.limiter, quick) == [2]
    world.marks.gate.set()
    told = await waiting
    assert [one.standings[0].remaining for one in told] == [99, 98, 99]
    assert await used(world.limiter, slow) == [1]  # one request, charged once


async def test_many_charges_are_decided_by_the_epoch_at_their_end(world: World) -> None:
    """Those that waited: a change that returned meanwhile is not passed over by any of them."""
    world.marks.gate = asyncio.Event()
    limits = (counter(amount=5, per=DAILY),)
    waiting = await begun(world.limiter.charge_many([Charge("acme", 1, "k1", limits, 1)] * 3))
    await world.limiter.publish("acme", 2)
    world.marks.gate.set()
    assert await waiting == [EpochMoved(2)] * 3
    assert (await charge(world.limiter, limits, cost=5, epoch=2)).denied is None


async def test_what_fails_among_many_charges_takes_no_other_along(world: World) -> None:
    """The counters of one can not be read: that one is told so, the other is charged."""
    known, unknown = (counter(name="known"),), (counter(per=DAILY, name="unknown"),)
    await charge(world.limiter, known)
    world.marks.broken = UnavailableError
    many = [Charge("acme", 1, "k1", limits, 1) for limits in (unknown, known)]
    failed, charged = await world.limiter.charge_many(many)
    assert isinstance(failed, UnavailableError)
    assert isinstance(charged, Charged)
    assert await used(world.limiter, known) == [2]


# -------------------------------------------------------------------------------------------------------- request_id


@pytest.mark.parametrize("per", [MINUTELY, DAILY])
async def test_a_request_repeated_within_60_seconds_is_charged_once(world: World, per: Per) -> None:
    """It is admitted, though nothing is left; after 60 seconds it is another request."""
    limits = (counter(amount=1, per=per),)
    assert (await charge(world.limiter, limits, request_id="r1")).denied is None
    for after in (0, 1, REMEMBERED - 1):
        world.clock.time = TODAY + 12 * HOUR + after
        again = await charge(world.limiter, limits, request_id="r1")
        assert (again.denied, again.standings[0].remaining) == (None, 0)
        assert (await charge(world.limiter, limits, request_id="r2")).denied is not None
    world.clock.time = TODAY + 12 * HOUR + REMEMBERED
    assert (await charge(world.limiter, limits, request_id="r1")).denied is not None


async def test_a_request_is_remembered_from_its_admission_not_from_its_repetition(world: World) -> None:
    """Repeating it again and again does not make it free for ever."""
    limits = (counter(amount=10, per=DAILY),)
    for _ in range(3):
        await charge(world.limiter, limits, request_id="r1")
        world.clock.time += REMEMBERED // 2
    assert await used(world.limiter, limits) == [2]


async def test_a_request_is_remembered_for_its_key_only(world: World) -> None:
    """Another key's request with the same id is another request; so is one without an id."""
    limits = (counter(amount=3),)
    await charge(world.limiter, limits, request_id="r1", key="k1")
    await charge(world.limiter, limits, request_id="r1", key="k2")
    await charge(world.limiter, limits, request_id="", key="k1")
    assert await used(world.limiter, limits) == [3]
    assert (await charge(world.limiter, limits, request_id="", key="k1")).denied is not None


@pytest.mark.parametrize("per", [MINUTELY, DAILY])
@pytest.mark.parametrize("cost", [1, 50])
async def test_a_request_repeated_concurrently_is_charged_once(world: World, per: Per, cost: int) -> None:
    """Also while the first of them still waits for its mark to be raised."""
    world.marks.gate = asyncio.Event()
    limits = (counter(amount=60, per=per),)
    tasks = [await begun(charge(world.limiter, limits, cost=cost, request_id="r1")) for _ in range(5)]
    assert all(task.done() for task in tasks) == (per is MINUTELY)
    world.marks.gate.set()
    for task in tasks:
        outcome = await task
        assert (outcome.denied, outcome.standings[0].remaining) == (None, 60 - cost)


async def test_a_denial_is_not_remembered(world: World) -> None:
    """Repeated, it is decided anew, and then charged."""
    limits = (counter(amount=2),)
    await charge(world.limiter, limits, cost=2)
    assert (await charge(world.limiter, limits, request_id="r1")).denied is not None
    world.clock.time += 2 * MINUTE
    assert (await charge(world.limiter, limits, request_id="r1")).denied is None
    assert await used(world.limiter, limits) == [1]


async def test_a_look_is_not_remembered(world: World) -> None:
    """A check of cost 0 with a request_id does not make the charge that follows it free."""
    limits = (counter(amount=2),)
    await charge(world.limiter, limits, cost=0, request_id="r1")
    await charge(world.limiter, limits, cost=1, request_id="r1")
    assert await used(world.limiter, limits) == [1]


async def test_a_charge_that_was_cut_off_is_not_remembered(world: World) -> None:
    """Its caller went away while it waited: nothing is charged, and the repetition is."""
    world.marks.gate = asyncio.Event()
    limits = (counter(amount=60, per=DAILY),)
    waiting = await begun(charge(world.limiter, limits, cost=20, request_id="r1"))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    world.marks.gate.set()
    await quiet()
    assert await used(world.limiter, limits) == [0]
    await charge(world.limiter, limits, cost=20, request_id="r1")
    assert await used(world.limiter, limits) == [20]


async def test_a_moved_epoch_forgets_no_request(world: World) -> None:
    """A repetition after a change is still not charged again; by the old epoch it is not even answered."""
    limits = (counter(amount=1),)
    await charge(world.limiter, limits, request_id="r1")
    await world.limiter.publish("acme", 2)
    assert await world.limiter.charge(Charge("acme", 1, "k1", limits, 1, "r1")) == EpochMoved(2)
    assert (await charge(world.limiter, limits, request_id="r1", epoch=2)).denied is None


# -------------------------------------------------------------------------------------------------- refund and adjust


async def test_a_refund_gives_back_once(world: World) -> None:
    """What the admission was charged, in all its counters; a second refund, or one of an unknown id, nothing."""
    limits = [counter(amount=100, per=per, name=str(per)) for per in (*ENDS, MINUTELY)]
    await charge(world.limiter, limits, cost=1)
    await charge(world.limiter, limits, cost=7, request_id="r1")
    await world.limiter.refund("acme", "k2", "r1")
    await world.limiter.refund("acme", "k1", "r2")
    assert await used(world.limiter, limits) == [8] * 5
    await world.limiter.refund("acme", "k1", "r1")
    await world.limiter.refund("acme", "k1", "r1")
    assert await used(world.limiter, limits) == [1] * 5


async def test_a_refund_is_of_its_own_sub_window(world: World) -> None:
    """What was charged later leaves the window no earlier because something older was given back."""
    limits = (counter(amount=10),)
    await charge(world.limiter, limits, cost=5, request_id="r1")
    world.clock.time += 30 * SECOND
    await charge(world.limiter, limits, cost=5)
    await world.limiter.refund("acme", "k1", "r1")
    assert await used(world.limiter, limits) == [5]
    world.clock.time += 31 * SECOND  # the older sub-window has left
    assert await used(world.limiter, limits) == [5]
    world.clock.time += 30 * SECOND
    assert await used(world.limiter, limits) == [0]


async def test_a_refund_does_not_reach_into_a_new_period(world: World) -> None:
    """Charged before midnight and given back after it: the new day's quota is not touched, the month's is."""
    daily, monthly = counter(amount=10, per=DAILY, name="day"), counter(amount=100, per=MONTHLY, name="month")
    world.clock.time = TODAY + DAY - 1
    await charge(world.limiter, (daily, monthly), cost=4, request_id="r1")
    world.clock.time = TODAY + DAY
    await charge(world.limiter, (daily, monthly), cost=3)
    await world.limiter.refund("acme", "k1", "r1")
    assert await used(world.limiter, (daily, monthly)) == [3, 3]


async def test_a_refund_comes_too_late_after_60_seconds(world: World) -> None:
    """What is no longer remembered is not given back."""
    limits = (counter(amount=10, per=DAILY),)
    await charge(world.limiter, limits, cost=4, request_id="r1")
    world.clock.time += REMEMBERED
    await world.limiter.refund("acme", "k1", "r1")
    assert await used(world.limiter, limits) == [4]


async def test_a_refund_gives_back_nothing_that_was_not_charged(world: World) -> None:
    """Admitted while unlimited, it was not counted: others' units are not its to give back."""
    daily = counter(amount=10, per=DAILY)
    await charge(world.limiter, (replace_amount(daily, None),), cost=4, request_id="r1")
    await charge(world.limiter, (daily,), cost=5)
    await world.limiter.refund("acme", "k1", "r1")
    assert await used(world.limiter, (daily,)) == [5]


async def test_what_is_refunded_can_be_charged_again(world: World) -> None:
    """Also by a repetition of the request: it is forgotten."""
    limits = (counter(amount=10, per=DAILY),)
    await charge(world.limiter, limits, cost=10, request_id="r1")
    await world.limiter.refund("acme", "k1", "r1")
    assert (await charge(world.limiter, limits, cost=10, request_id="r1")).denied is None
    assert (await charge(world.limiter, limits, cost=1)).denied is not None


@pytest.mark.parametrize("per", [*ENDS, MINUTELY])
async def test_an_adjustment_overdraws(world: World, per: Per) -> None:
    """It charges beyond the amount; nothing remains then, never less, and every unit counts for its time."""
    limits = (counter(amount=10, per=per),)
    await world.limiter.adjust("acme", limits, 7, once="a1")
    assert await used(world.limiter, limits) == [7]
    await world.limiter.adjust("acme", limits, 25, once="a2")
    looked = await charge(world.limiter, limits, cost=0)
    assert (looked.denied, looked.standings[0].remaining) == (limits[0].limit, 0)
    assert await used(world.limiter, [replace_amount(limits[0], WIDE)]) == [32]
    if outlives_its_store(limits[0].limit):
        assert (await world.used_after_a_crash(limits))[0] >= 32


async def test_an_adjustment_is_made_once(world: World) -> None:
    """Repeated under its name, also at once and with other units, it charges nothing again; another name does."""
    limits = (counter(per=DAILY), counter(per=MINUTELY, name="rate"))
    again = [world.limiter.adjust("acme", limits, units, once="a1") for units in (7, 7, 8)]
    await asyncio.gather(*again)
    await world.limiter.adjust("acme", limits, 7, once="a1")
    assert await used(world.limiter, limits) == [7, 7]
    await world.limiter.adjust("acme", limits, 7, once="a2")
    assert await used(world.limiter, limits) == [14, 14]


async def test_an_adjustment_of_an_unlimited_one_counts_nothing(world: World) -> None:
    """As a charge does: a limit that is set later begins at nothing."""
    daily = counter(amount=None, per=DAILY)
    await world.limiter.adjust("acme", (daily,), 7, once="a3")
    assert await used(world.limiter, (replace_amount(daily, 10),)) == [0]


# ------------------------------------------------------------------------------- what outlives the counters' store


@pytest.mark.parametrize("per", ENDS)
@pytest.mark.parametrize("amount", [1, 5, 10, 11, 999, 1_000, 1_001, 50_000])
async def test_a_crash_costs_a_block_at_most_and_refills_nothing(world: World, per: Per, amount: int) -> None:
    """After each of many charges: what counts then is what was used, or more by up to 1 % of the amount or 10."""
    limits = (counter(amount=amount, per=per),)
    most = max(10, amount // 100)
    for spent in range(1, min(amount, 60) + 1):
        assert (await charge(world.limiter, limits)).denied is None
        (after,) = await world.used_after_a_crash(limits)
        assert spent <= after <= min(amount, spent + most)


async def test_a_short_window_starts_empty_and_needs_no_database(world: World) -> None:
    """Rolling limits of up to 5 minutes are not reserved."""
    world.marks.broken = UnavailableError
    limits = (counter(amount=5, per=Rolling(5 * MINUTE)),)
    await charge(world.limiter, limits, cost=5)
    assert (world.marks.saves, world.marks.loads) == (0, 0)


async def test_marks_are_raised_in_time_so_that_charges_do_not_wait(world: World) -> None:
    """Where the database is quick enough only the first charge waits; the rest find their mark raised already."""
    limits = (counter(amount=10_000, per=DAILY),)
    await charge(world.limiter, limits)
    asked = 0 if world.client is None else world.client.asked["charge"]
    for _ in range(1_000):
        task = asyncio.create_task(charge(world.limiter, limits))
        await asyncio.sleep(0)
        assert task.done() or world.client is not None
        await quiet(5)
    assert world.client is None or world.client.asked["charge"] == asked + 1_000
    assert world.marks.saves <= 1 + 1_000 // 50


async def test_what_is_charged_during_a_write_counts_against_the_mark_that_is_written(world: World) -> None:
    """A mark raised in the background was drawn up before those charges: it leaves less room than a block."""
    limits = (counter(amount=10_000, per=DAILY),)
    await charge(world.limiter, limits, cost=51)
    await quiet()
    world.marks.gate = asyncio.Event()
    for cost in (51, 40):  # the first has the mark raised; both fit under the one before it
        assert (await begun(charge(world.limiter, limits, cost=cost))).done()
    let_through, world.marks.gate = world.marks.gate, asyncio.Event()
    let_through.set()
    await quiet()  # that mark is written, and the write of the next is held up
    large = await begun(charge(world.limiter, limits, cost=100))
    assert 142 + 100 * large.done() <= (await world.used_after_a_crash(limits))[0]
    world.marks.gate.set()
    await large
    assert await used(world.limiter, limits) == [242]


async def test_a_mark_that_is_being_lowered_is_not_used_to_its_old_height(world: World) -> None:
    """Reserved to measure for a charge that gave up, it is written anew: what is charged meanwhile fits under both."""
    limits = (counter(amount=10_000, per=DAILY),)
    await charge(world.limiter, limits)
    await quiet()
    world.marks.gate = asyncio.Event()
    gone = await begun(charge(world.limiter, limits, cost=5_000))
    gone.cancel()
    let_through, world.marks.gate = world.marks.gate, asyncio.Event()
    let_through.set()
    await quiet()  # the high mark is written, and the write of a lower one is held up
    large = await begun(charge(world.limiter, limits, cost=4_000))
    world.marks.gate.set()
    await quiet()
    assert large.done()
    assert 4_001 <= (await world.used_after_a_crash(limits))[0] <= 4_101


async def test_a_charge_larger_than_a_block_is_reserved_whole(world: World) -> None:
    """It is told only when the mark holds all of it; afterwards the mark is a block above it again, not more."""
    limits = (counter(amount=1_000, per=DAILY),)
    await charge(world.limiter, limits, cost=400)
    assert (await world.used_after_a_crash(limits))[0] >= 400
    await quiet()
    assert (await world.used_after_a_crash(limits))[0] <= 410


@pytest.mark.parametrize("per", ENDS)
async def test_the_last_charge_of_all_leaves_a_mark_that_ages_with_it(world: World, per: Per) -> None:
    """A single charge of the whole amount: when it no longer counts, a crash does not bring it back."""
    limits = (counter(amount=1_000, per=per),)
    await charge(world.limiter, limits, cost=1_000)
    await quiet()
    world.clock.time += 40 * DAY
    (now,) = await used(world.limiter, limits)
    (after,) = await world.used_after_a_crash(limits)
    assert now <= after <= now + 10


async def test_a_charge_that_is_denied_or_gives_up_after_all_keeps_no_mark(world: World) -> None:
    """What was reserved for it is given free: a crash costs no more than a block."""
    limits = (counter(amount=1_000, per=Lifetime()),)
    await charge(world.limiter, limits, cost=1)
    await quiet()
    world.marks.gate = asyncio.Event()
    denied = await begun(charge(world.limiter, limits, cost=995))
    quick = await begun(charge(world.limiter, limits, cost=9))
    gone = await begun(charge(world.limiter, limits, cost=800))
    assert (denied.done(), quick.done(), gone.done()) == (False, True, False)
    gone.cancel()
    world.marks.gate.set()
    assert (await denied).denied is not None
    await asyncio.gather(gone, return_exceptions=True)
    await quiet()
    (after,) = await world.used_after_a_crash(limits)
    assert 10 <= after <= 20


async def test_a_refund_lowers_the_mark(world: World) -> None:
    """What was given back is not lost by a crash, but for a block."""
    limits = (counter(amount=1_000, per=DAILY),)
    await charge(world.limiter, limits, cost=700, request_id="r1")
    await quiet()
    await world.limiter.refund("acme", "k1", "r1")
    await quiet()
    assert (await world.used_after_a_crash(limits))[0] <= 10


async def test_a_lowered_amount_forgets_nothing_over_a_crash(world: World) -> None:
    """Used 95 of 100, lowered to 92, crashed, raised to 100 again: 95 are used still."""
    limit = counter(amount=100, per=Lifetime())
    for _ in range(95):
        await charge(world.limiter, (limit,))
    other = world.start(Marks(world.marks.held))
    await used(other, (replace_amount(limit, 92),))
    assert (await used(other, (limit,)))[0] >= 95


async def test_keys_with_amounts_of_their_own_share_a_counter(world: World) -> None:
    """A key with a lower amount for the account's counter, denied again and again, does not lower the others' mark."""
    high, low = counter(amount=5_000, per=DAILY), counter(amount=20, per=DAILY)
    world.marks.patience = 2
    spent = 0
    for cost in (10, 10, 25, 1, 2, 24, 30, 5, 60):
        assert (await charge(world.limiter, (high,), cost=cost, key="k1")).denied is None
        spent += cost
        assert (await charge(world.limiter, (low,), key="k2", cost=12)).denied is None if spent == 0 else True
        await charge(world.limiter, (low,), key="k2", cost=12)
        await world.limiter.adjust("acme", (low,), 1, once=f"a{spent}")
        spent += 1
        assert (await world.used_after_a_crash((high,)))[0] >= spent


@writes_at_the_end
async def test_after_close_nothing_is_lost(world: World) -> None:
    """A restart costs no quota at all: every counter is as it was, those of cut-off charges included."""
    limits = [counter(amount=1_000, per=per, name=str(per)) for per in ENDS]
    for number, limit in enumerate(limits):
        await charge(world.limiter, (limit,), cost=number + 3)
    aside = counter(amount=1_000, per=DAILY, name="aside")
    world.marks.gate = asyncio.Event()
    gone = await begun(charge(world.limiter, (aside,), cost=500))
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    world.marks.gate.set()
    await quiet()
    await world.limiter.close()
    assert await world.used_after_a_crash((*limits, aside)) == [3, 4, 5, 6, 0]


@writes_at_the_end
async def test_close_waits_for_no_database_that_hangs_in_a_background_write(world: World) -> None:
    """A write under way is given up: what is written at the end holds all of it."""
    limits = (counter(amount=1_000, per=DAILY),)
    await charge(world.limiter, limits, cost=3)
    await quiet()
    world.marks.gate = asyncio.Event()
    await charge(world.limiter, limits, cost=6)
    await quiet()
    world.marks.gate = None
    async with asyncio.timeout(10):
        await world.limiter.close()
    assert await world.used_after_a_crash(limits) == [9]


@writes_at_the_end
async def test_close_tells_that_it_could_not_write(world: World) -> None:
    """UnavailableError, and the marks stand as before: a block is lost, no more."""
    limits = (counter(amount=1_000, per=DAILY),)
    await charge(world.limiter, limits, cost=3)
    world.marks.broken = UnavailableError
    with pytest.raises(UnavailableError):
        await world.limiter.close()
    assert 3 <= (await world.used_after_a_crash(limits))[0] <= 13


async def test_a_counter_that_can_not_be_loaded_is_not_guessed(world: World) -> None:
    """UnavailableError, for a charge, a look and an adjustment; with the database back it is as it was left."""
    limits = (counter(amount=10, per=DAILY),)
    await charge(world.limiter, limits, cost=9)
    await world.limiter.close()
    left = await world.used_after_a_crash(limits)
    other = world.start()
    await seed(other)
    world.marks.broken = UnavailableError
    for cost in (0, 1):
        with pytest.raises(UnavailableError):
            await charge(other, limits, cost=cost)
    with pytest.raises(UnavailableError):
        await other.adjust("acme", limits, 1, once="a5")
    world.marks.broken = None
    assert await used(other, limits) == left


@pytest.mark.parametrize("broken", [UnavailableError, RuntimeError, asyncio.CancelledError])
async def test_while_marks_can_not_be_written_checks_go_on_degraded(world: World, broken: type[BaseException]) -> None:
    """Limits stay exact, each verdict says so, and when the database is back the marks catch up."""
    limits = (counter(amount=1_000, per=DAILY),)
    await charge(world.limiter, limits)
    await quiet()
    world.marks.broken = broken
    degraded = [(await charge(world.limiter, limits, cost=9)).degraded for _ in range(50)]
    assert degraded[-1]
    assert world.told == [True]
    assert await used(world.limiter, limits) == [451]
    assert (await charge(world.limiter, limits, cost=550)).denied is not None
    assert (await charge(world.limiter, limits, cost=0)).degraded
    world.marks.broken = None
    await quiet()
    assert world.told == [True, False]
    assert 451 <= (await world.used_after_a_crash(limits))[0] <= 461
    assert not (await charge(world.limiter, limits)).degraded


async def test_an_overdraft_of_degraded_times_is_caught_up_too(world: World) -> None:
    """Beyond the amount there is nothing to reserve, but what was charged is kept."""
    limits = (counter(amount=100, per=DAILY),)
    await charge(world.limiter, limits)
    world.marks.broken = UnavailableError
    await world.limiter.adjust("acme", limits, 250, once="a6")
    world.marks.broken = None
    await quiet()
    assert (await world.used_after_a_crash(limits))[0] >= 251


async def test_a_database_that_hangs_is_waited_for_no_longer_than_so(world: World) -> None:
    """Then checks go on, degraded; when the write comes through at last the marks hold and all is well."""
    limiter = world.start(patience=0.001 if world.client is None else 0.5)  # of that, Redis takes a part
    await seed(limiter)
    limits = (counter(amount=1_000, per=DAILY),)
    world.marks.gate = asyncio.Event()
    async with asyncio.timeout(10):
        outcome = await charge(limiter, limits, cost=20)
        assert (outcome.denied, outcome.degraded) == (None, True)
        for _ in range(20):
            assert (await charge(limiter, limits, cost=20)).degraded
    world.marks.gate.set()
    await quiet()
    assert world.told == [True, False]
    assert 420 <= (await world.used_after_a_crash(limits))[0] <= 430


async def test_a_caller_that_gives_up_on_a_hanging_database_takes_nobody_along(world: World) -> None:
    """Its charge is not made; the others' are, once the database answers."""
    limits = (counter(amount=100, per=DAILY),)
    world.marks.gate = asyncio.Event()
    first, second = [await begun(charge(world.limiter, limits, cost=40)) for _ in range(2)]
    first.cancel()
    await quiet()
    assert (first.done(), second.done()) == (True, False)
    world.marks.gate.set()
    assert (await second).denied is None
    assert await used(world.limiter, limits) == [40]


async def test_two_loads_of_one_counter_make_one(world: World) -> None:
    """A load that was overtaken by another does not put its older state in place of what was charged since."""
    limits = (counter(amount=100, per=DAILY),)
    world.marks.patience = 1_000
    slow = await begun(charge(world.limiter, limits))
    world.marks.patience = 0
    for _ in range(5):
        await charge(world.limiter, limits)
    assert not slow.done() or world.client is not None  # which reads but once at a time
    await slow
    assert await used(world.limiter, limits) == [6]


# ---------------------------------------------------------------------------------------------------- random histories


@dataclass(frozen=True)
class Check:
    """A check of a key is started."""

    key: int
    cost: int
    request: int
    """0: without a request_id."""


@dataclass(frozen=True)
class Refund:
    """A refund."""

    key: int
    request: int


@dataclass(frozen=True)
class Adjust:
    """An adjustment of a key's counters is started."""

    key: int
    units: int


@dataclass(frozen=True)
class Pass:
    """Time passes, then the event loop takes some steps."""

    time: int
    steps: int


@dataclass(frozen=True)
class Amount:
    """A limit has another amount from now on."""

    limit: int
    amount: int | None


@dataclass(frozen=True)
class Database:
    """The database is away, or back, and this slow."""

    broken: bool
    patience: int


@dataclass(frozen=True)
class Cut:
    """The last call that is under way is cut off by its caller."""


@dataclass(frozen=True)
class Quiet:
    """Everything comes to rest."""


@dataclass(frozen=True)
class Crash:
    """The process ends, and another starts."""


Move = Check | Refund | Adjust | Pass | Amount | Database | Cut | Quiet | Crash

PERS: tuple[Per, ...] = (DAILY, Rolling(DAY), MINUTELY, HOURLY, Lifetime(), MONTHLY)
CHARGED = ((0, 1, 2, 3, 4, 5), (0, 1, 3), (0, 4, 5))
"""The limits by which each key is charged."""
amounts = st.sampled_from((3_000, 1_000, 100, 60, 40, None, 20, 5, 0))
keys = st.integers(0, 2)
requests = st.integers(0, 4)
checks = st.builds(Check, keys, st.sampled_from((0, 1, 1, 1, 2, 5, 9, 30, 120)), st.sampled_from((0, 0, 0, 1, 2, 3)))
passes = st.builds(
    Pass, st.sampled_from((0, 0, 1, SECOND, 59 * SECOND, MINUTE, 7 * HOUR, DAY, 20 * DAY)), st.integers(0, 8)
)
moves = st.one_of(
    checks,
    checks,
    checks,
    passes,
    passes,
    st.builds(Refund, keys, st.integers(1, 3)),
    st.builds(Adjust, keys, st.sampled_from((1, 4, 50))),
    st.builds(Amount, st.integers(0, 5), amounts),
    st.builds(Database, st.booleans(), st.integers(0, 6)),
    st.just(Cut()),
    st.just(Quiet()),
)


class History:
    """Runs moves against a limiter and, at every answer, against the pure ``spend``."""

    def __init__(self, backend: str, plan: Sequence[int | None]) -> None:
        self.world = World(backend)
        self.clock = self.world.clock
        self.amounts: dict[int, int | None] = {}
        self.states: dict[str, State] = {}
        self.remembered: dict[tuple[str, str], tuple[int, int, list[tuple[Counter, int]]]] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.blocks = dict.fromkeys(range(6), 10)
        """The largest block of each limit so far: a mark may be of a time before its amount was lowered."""
        for number, amount in enumerate(plan):
            self.set_amount(number, amount)
        self.costliest = 0
        """The largest cost since everything came to rest: so much may be reserved for a while."""
        self.adjusted = 0
        """How many adjustments there were."""
        self.refunded = 0
        """What was given back since everything came to rest: marks follow a little later."""
        self.safe = True
        """Whether the database has taken every mark since all came to rest."""
        self.looking = 0
        """How many looks are under way: time stands still for them."""

    def set_amount(self, limit: int, amount: int | None) -> None:
        """Give a limit another amount."""
        self.amounts[limit] = amount
        self.blocks[limit] = max(self.blocks[limit], (amount or 0) // 100)

    def counters(self, key: int) -> tuple[Counter, ...]:
        """Return the counters of a key: limits 0 to 2 are the account's, which all keys share, 3 to 5 each key's."""
        return tuple(
            counter(self.amounts[number], PERS[number], f"limit{number}", f"k{key}" if number > 2 else "")
            for number in CHARGED[key]
        )

    async def run(self, course: Sequence[Move]) -> None:
        """Run all moves, then close."""
        await seed(self.world.limiter)
        self.world.marks.look = self.look
        for move in course:
            await self.make(move)
        await self.make(Quiet())
        self.world.marks.look = None
        await self.world.limiter.close()
        if self.world.backend == "memory":
            assert await self.world.used_after_a_crash(self.durable()) == self.truly_used()

    async def make(self, move: Move) -> None:
        """Make one move."""
        match move:
            case Check(key, cost, request):
                self.costliest = max(self.costliest, cost)
                self.start(self.check(f"k{key}", self.counters(key), cost, f"r{request}" if request else ""))
            case Adjust(key, units):
                self.costliest = max(self.costliest, units)
                self.start(self.adjust(self.counters(key), units))
            case Refund(key, request):
                await self.refund(f"k{key}", f"r{request}")
            case Pass(time, steps):
                await self.pass_by(time, steps)
            case Amount(limit, amount):
                self.set_amount(limit, amount)
            case Database(broken, patience):
                self.world.marks.broken = UnavailableError if broken else None
                self.world.marks.patience = patience
                self.safe = self.safe and not broken
            case Cut():
                await redis_counters.answered()  # what Redis is asked is charged, whoever goes away
                if self.tasks:
                    self.tasks.pop().cancel()
                    await quiet(1)
            case Quiet():
                await self.rest()
            case _:
                raise AssertionError(move)

    async def pass_by(self, time: int, steps: int) -> None:
        """Let time pass, and so many turns of the loop."""
        await redis_counters.answered()  # what Redis is asked, it decides by the time at which it is asked
        while self.looking:
            await redis_counters.answered()
        self.clock.time += time
        await quiet(steps)

    def start(self, call: Coroutine[Any, Any, None]) -> None:
        """Start a call without waiting for it."""
        self.tasks.append(asyncio.create_task(call))

    async def rest(self) -> None:
        """Bring the database back and everything to rest: now marks are a block above what is used, at most."""
        self.world.marks.broken = None
        outcomes = await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks.clear()
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, UnavailableError):
                raise outcome
        await quiet()
        self.safe, self.refunded, self.costliest = True, 0, 0
        await self.look()

    async def check(self, key: str, counters: tuple[Counter, ...], cost: int, request_id: str) -> None:
        """Charge, and hold the answer against the oracle's."""
        outcome = await charge(self.world.limiter, counters, cost, request_id, key)
        now = self.clock.now()
        states = [self.states.get(of.id) for of in counters]
        known = self.remembered.get((key, request_id)) if request_id else None
        if known is not None and now < known[0] + REMEMBERED:
            spent = spend([replace_amount(of, None) for of in counters], states, 0, now)
        else:
            spent = spend(counters, states, cost, now)
            if spent.denied is None and cost and request_id:
                charged = [
                    (of, moment(state))
                    for of, state in zip(counters, spent.states, strict=True)
                    if of.limit.amount is not None
                ]
                self.remembered[key, request_id] = now, cost, charged
        self.states |= {of.id: state for of, state in zip(counters, spent.states, strict=True)}
        retry = None if spent.retry_time is None else spent.retry_time - now
        standings = tuple(map(standing, counters, spent.states))
        assert outcome[:3] == (spent.denied, retry, standings)
        await self.look()

    async def adjust(self, counters: tuple[Counter, ...], units: int) -> None:
        """Adjust, in the oracle too."""
        self.adjusted += 1
        await self.world.limiter.adjust("acme", counters, units, once=f"a{self.adjusted}")
        now = self.clock.now()
        for of in counters:
            if of.limit.amount is not None:
                self.states[of.id] = add(up_to_now(of, self.states.get(of.id), now), units)
        await self.look()

    async def refund(self, key: str, request_id: str) -> None:
        """Refund, in the oracle too."""
        await self.world.limiter.refund("acme", key, request_id)
        time, cost, charged = self.remembered.pop((key, request_id), (0, 0, []))
        now = self.clock.now()
        if now >= time + REMEMBERED:
            return
        self.refunded += cost
        for of, charged_at in charged:
            self.states[of.id] = give_back(up_to_now(of, self.states[of.id], now), cost, charged_at)
        await self.look()

    def durable(self) -> list[Counter]:
        """Return the counters that must outlive their store."""
        found = {of.id: of for key in range(3) for of in self.counters(key) if outlives_its_store(of.limit)}
        return list(found.values())

    def truly_used(self) -> list[int]:
        """Return what is used, by the oracle."""
        now = self.clock.now()
        return [up_to_now(of, self.states.get(of.id), now).used for of in self.durable()]

    async def look(self) -> None:
        """Hold what would count after a crash at this moment against what is used."""
        if not self.safe:
            return
        counters, truth = self.durable(), self.truly_used()
        self.looking += 1
        try:
            after = await self.world.used_after_a_crash(counters)
        finally:
            self.looking -= 1
        for index, (of, before) in enumerate(zip(counters, truth, strict=True)):
            assert after[index] >= before, f"{of.id}: a crash would refill it"
            most = max(self.blocks[int(of.limit.name[-1])], self.costliest) + self.refunded
            assert after[index] <= before + most, f"{of.id}: a crash would cost too much"


plans = st.lists(amounts, min_size=6, max_size=6)


@histories
@given(plans, st.lists(moves, max_size=40))
def test_any_history_is_as_the_pure_spend_says_and_survives_a_crash_at_any_point(
    plan: list[int | None], course: list[Move]
) -> None:
    """Concurrent checks, repetitions, refunds and changes, over days, with a slow or absent database.

    Every answer is the oracle's. At every answer, and before and after every write, the marks in the database are
    never below what is used: so a crash then refills nothing. It costs a block at most once calls have come to rest,
    and nothing after a close.
    """
    run(history("memory", plan, course))


@histories_in_redis
@given(plans, st.lists(moves, max_size=40))
def test_any_history_in_redis_is_as_the_pure_spend_says(
    redis_server: RedisServer, plan: list[int | None], course: list[Move]
) -> None:
    """The same; here a crash is the loss of all that is in Redis."""
    URLS["redis"] = redis_server.url()
    run(history("redis", plan, course))


async def history(backend: str, plan: Sequence[int | None], course: Sequence[Move]) -> None:
    """Run moves against a limiter of this kind."""
    await History(backend, plan).run(course)


lives = st.lists(
    st.one_of(
        st.builds(Check, keys, st.integers(0, 10), st.just(0)),
        st.builds(Check, keys, st.integers(1, 3), st.just(0)),
        st.builds(Pass, st.sampled_from((0, SECOND, MINUTE, HOUR, 9 * HOUR, DAY)), st.integers(0, 8)),
        st.just(Crash()),
    ),
    max_size=60,
)


@histories
@given(st.lists(st.integers(1, 80), min_size=6, max_size=6), st.integers(0, 4), lives)
def test_no_number_of_crashes_refills_a_limit(plan: list[int], patience: int, course: list[Move]) -> None:
    """Whenever and however often the process ends: never is more admitted than the amount, and each costs a block."""

    async def run() -> None:
        history = History("memory", plan)
        world = history.world
        world.marks.patience = patience
        await seed(world.limiter)
        admitted: dict[str, State] = {}
        crashes = 0

        async def check(limiter: Limiter, counters: tuple[Counter, ...], cost: int) -> None:
            outcome = await charge(limiter, counters, cost)
            if outcome.denied is not None or not cost:
                return
            for of in counters:
                if outlives_its_store(of.limit):
                    admitted[of.id] = add(up_to_now(of, admitted.get(of.id), world.clock.now()), cost)
                    assert admitted[of.id].used <= (of.limit.amount or 0)

        for move in course:
            match move:
                case Check(key, cost, _):
                    history.start(check(world.limiter, history.counters(key), cost))
                case Crash():
                    await abandon(history.tasks)
                    world.limiter = world.start()
                    await seed(world.limiter)
                    crashes += 1
                case _:
                    await history.make(move)
        await asyncio.gather(*history.tasks)
        now = world.clock.now()
        for of in history.durable():
            truth = up_to_now(of, admitted.get(of.id), now).used
            (counted,) = await used(world.limiter, (replace_amount(of, WIDE),))
            assert truth <= counted <= truth + crashes * 10

    asyncio.run(run())


async def abandon(tasks: list[asyncio.Task[None]]) -> None:
    """End calls, and the writers behind them, as a crash does: at once, whatever they were at."""
    me = asyncio.current_task()
    for task in asyncio.all_tasks():
        if task is not me:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()


def test_the_clock_of_these_tests_stands_at_noon_of_a_day() -> None:
    """Tests above count hours to midnight from it."""
    noon = datetime.fromtimestamp(SettableClock().now() // SECOND, UTC)
    assert (noon.hour, noon.minute, noon.day) == (12, 0, 19)
