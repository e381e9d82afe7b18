"""What only counters in Redis go through: several processes at once, clocks that jump, Redis losing its memory."""

from __future__ import annotations

import asyncio
import math
import random
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.errors import LostAnswerError, UnavailableError
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
from formgate_server.core.ports import (
    Charge,
    Charged,
    ChargeResult,
    EpochMissing,
    EpochMoved,
    LeaseCharge,
    Reserved,
)
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.redis.client import RedisClient
from formgate_server.storage.redis.errors import LostAnswer, ScriptFailed, StoreUnavailable
from formgate_server.storage.redis.limiter import RedisLimiter
from formgate_server.storage.redis.plan import MOST
from tests.support import counters as redis_counters
from tests.support.clock import DAY, HOUR, MINUTE, SECOND, TODAY, SettableClock
from tests.support.counters import TimedClient, connected
from tests.support.proxy import Proxy
from tests.support.redis import SERVERS, RedisServer

DAILY, LIFETIME, LONG, SHORT = Calendar(Period.DAY), Lifetime(), Rolling(HOUR), Rolling(MINUTE)
Per = Rolling | Calendar | Lifetime


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis that these tests may empty and upset; each begins with an empty one."""
    with RedisServer(tmp_path_factory.mktemp("own-redis")) as started:
        yield started


class Marks(MemoryReservations):
    """A database whose reads a test can put off: they have read, and their answers wait."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: asyncio.Event | None = None
        self.writes: asyncio.Event | None = None
        self.waiting = asyncio.Event()
        """Set when an answer, or a write, waits."""

    async def load(self, counter_ids: Collection[str]) -> Mapping[str, Reserved]:
        """See ``Reservations``."""
        rows = await super().load(counter_ids)
        if self.gate is not None:
            self.waiting.set()
            await self.gate.wait()
        return rows

    async def advance(self, marks: Mapping[str, Reserved], *, insist: bool = False) -> Collection[str]:
        """See ``Reservations``; a write waits before it is made."""
        if self.writes is not None:
            self.waiting.set()
            await self.writes.wait()
        return await super().advance(marks, insist=insist)


class World:
    """Processes over one Redis and one database."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.clock = SettableClock()
        self.marks = Marks()
        self.told: list[bool] = []

    def process(
        self,
        url: str = "",
        *,
        timeout: float = 10.0,
        timed: bool = True,
        replication_ids: bool = True,
        patience: float = 2.0,
    ) -> RedisLimiter:
        """Start a process: a limiter with a connection of its own."""
        client: RedisClient = connected(url or self.server.url(), timeout)
        if timed:
            client = TimedClient(client, self.clock)
        return RedisLimiter(
            client,
            self.marks,
            self.clock,
            replication_ids=replication_ids,
            on_degraded=self.told.append,
            retry_seconds=0.01,
            patience_seconds=patience,
        )


@pytest.fixture
async def world(server: RedisServer) -> AsyncIterator[World]:
    """An empty Redis and an empty database."""
    server.do("FLUSHALL")
    yield World(server)
    await redis_counters.end()


def counter(amount: int | None, per: Per, name: str = "limit", zone: str = "UTC") -> Counter:
    """Make a counter of the account ``acme``."""
    return Counter(f"acme/{name}", Limit(name, Holder.ACCOUNT, amount, per), zone)


async def decided(
    limiter: RedisLimiter,
    counters: Sequence[Counter],
    cost: int = 1,
    request_id: str = "",
    epoch: int = 1,
    *,
    account: str = "acme",
) -> Charged:
    """Charge as a check does, which seeds a missing epoch."""
    outcome: ChargeResult = EpochMissing(0)
    while not isinstance(outcome, Charged):
        outcome = await limiter.charge(Charge(account, epoch, "k1", tuple(counters), cost, request_id))
        if isinstance(outcome, EpochMissing):
            await limiter.seed(account, epoch, outcome.incarnation)
    return outcome


async def used(limiter: RedisLimiter, *counters: Counter) -> list[int]:
    """Return what counts as used."""
    looked = await limiter.look("acme", counters)
    return [(of.limit.amount or 0) - told.remaining for of, told in zip(counters, looked, strict=True)]


# ------------------------------------------------------------------------------------------ as the pure code, any clock

LIMITS = (
    counter(60, SHORT, "minute"),
    counter(MOST, SHORT, "huge"),
    counter(100, Rolling(7_001), "odd"),
    counter(1_000, LONG, "hour"),
    counter(40, Rolling(366 * DAY), "year"),
    counter(50, DAILY, "day", "Europe/Vienna"),
    counter(MOST, Calendar(Period.MONTH), "month", "America/New_York"),
    counter(10**9, LIFETIME, "life"),
)
costs = st.one_of(st.integers(0, 12), st.sampled_from((59, 60, 61, 999, MOST // 2, MOST - 1, MOST, MOST + 1, 2**62)))
steps = st.sampled_from(
    (0, 1, 117, 7_000, SECOND, 59 * SECOND, MINUTE, 61 * SECOND, HOUR, 13 * HOUR, DAY, 40 * DAY, 400 * DAY)
)
courses = st.lists(
    st.tuples(
        st.sampled_from(("check", "check", "check", "adjust", "refund", "look")),
        st.lists(st.integers(0, len(LIMITS) - 1), min_size=1, max_size=4, unique=True),
        costs,
        steps,
        st.sampled_from((1, 1, 1, 1, -1)),
    ),
    max_size=40,
)


Move = tuple[str, list[int], int, int, int]


class History:
    """Runs moves against counters in Redis and the pure code."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.limiter = world.process()
        self.states: dict[str, State] = {}
        self.admitted: tuple[str, int, int, list[tuple[Counter, int]]] | None = None

    async def run(self, course: Sequence[Move]) -> None:
        """Run all moves."""
        for number, (move, places, cost, step, direction) in enumerate(course):
            self.world.clock.time = max(DAY, self.world.clock.time + step * direction)
            counters = tuple(LIMITS[place] for place in places)
            await getattr(self, move)(counters, cost, f"n{number}")
        await self.limiter.close()

    async def check(self, counters: tuple[Counter, ...], cost: int, name: str) -> None:
        """Charge."""
        now = self.world.clock.time
        outcome = await decided(self.limiter, counters, cost, name)
        spent = spend(counters, [self.states.get(of.id) for of in counters], cost, now)
        retry = None if spent.retry_time is None else spent.retry_time - now
        assert outcome[:3] == (spent.denied, retry, tuple(map(standing, counters, spent.states)))
        self.states |= {of.id: state for of, state in zip(counters, spent.states, strict=True)}
        if spent.denied is None and cost:
            moments = [(of, moment(state)) for of, state in zip(counters, spent.states, strict=True)]
            self.admitted = name, cost, now, moments

    async def adjust(self, counters: tuple[Counter, ...], cost: int, name: str) -> None:
        """Charge beyond the amounts."""
        units = min(cost, 10**6)
        await self.limiter.adjust("acme", counters, units, once=name)
        for of in counters:
            self.states[of.id] = add(up_to_now(of, self.states.get(of.id), self.world.clock.time), units)

    async def look(self, counters: tuple[Counter, ...], _cost: int, _name: str) -> None:
        """Tell where they stand."""
        now = self.world.clock.time
        current = [up_to_now(of, self.states.get(of.id), now) for of in counters]
        assert await self.limiter.look("acme", counters) == tuple(map(standing, counters, current))

    async def refund(self, _counters: tuple[Counter, ...], _cost: int, _name: str) -> None:
        """Give the last admission back."""
        if self.admitted is None:
            return
        name, cost, time, charged = self.admitted
        self.admitted = None
        now = self.world.clock.time
        await self.limiter.refund("acme", "k1", name)
        if abs(now - time) < MINUTE:
            for of, charged_at in charged:
                self.states[of.id] = give_back(up_to_now(of, self.states[of.id], now), cost, charged_at)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(courses)
def test_any_history_by_any_clock_is_as_the_pure_code_says(server: RedisServer, course: list[Move]) -> None:
    """Whatever is charged when, also where the clock goes back: verdict, remainder, retry time, each to the unit.

    That is so up to 2^52 units; no count goes beyond.
    """

    async def run() -> None:
        server.do("FLUSHALL")
        try:
            await History(World(server)).run(course)
        finally:
            await redis_counters.end()

    asyncio.run(run())


async def test_counts_end_at_2_to_the_52_and_free_nothing(world: World) -> None:
    """Larger amounts are taken for that, larger costs for too much; an overdraft beyond it is not forgotten early."""
    limiter = world.process()
    for per in (SHORT, LONG, DAILY, LIFETIME):
        limits = (counter(2**63 - 1, per, str(per)),)
        assert (await decided(limiter, limits, 2**52 + 1)).denied == limits[0].limit
        assert (await decided(limiter, limits, 2**52)).denied is None
        denied = await decided(limiter, limits, 1)
        assert (denied.denied, denied.standings[0].remaining) == (limits[0].limit, 0)
    rate = counter(5, SHORT, "overdrawn")
    await limiter.adjust("acme", (rate,), 2**62, once="a1")
    world.clock.time += 30 * SECOND
    await limiter.adjust("acme", (rate,), 2**62, once="a2")
    world.clock.time += 31 * SECOND
    assert (await decided(limiter, (rate,))).denied is not None
    world.clock.time += 30 * SECOND
    assert await used(limiter, rate) == [0]


async def test_a_count_of_ever_more_is_ordered_still(world: World) -> None:
    """What was ever charged may be more than a script can count: marks are ordered all the same, and not lost."""
    limiter = world.process()
    daily = counter(2**52, DAILY)
    serials = []
    for _ in range(20):
        assert (await decided(limiter, (daily,), 2**52 - 7)).denied is None
        await redis_counters.answered()
        serials.append((await world.marks.load([daily.id]))[daily.id].serial)
        world.clock.time += DAY
    assert serials == sorted(set(serials))
    assert serials[-1] >= 20 * (2**52 - 7)
    world.server.do("FLUSHALL")
    assert await used(limiter, daily) == [0]


async def test_each_check_of_the_same_counters_is_sent_as_it_is_asked(world: World) -> None:
    """What is packed once for the counters of a key says nothing of the checks before: cost, epoch, request, day."""
    limits = (counter(100, SHORT), counter(100, DAILY, "day"))
    limiter = world.process()

    async def left(cost: int, request_id: str = "", epoch: int = 1) -> list[int]:
        told = await decided(limiter, limits, cost, request_id, epoch)
        return [each.remaining for each in told.standings]

    assert await left(1) == [99, 99]
    assert await left(5) == [94, 94]
    assert await left(5) == [89, 89]
    assert await left(0) == [89, 89]
    assert await left(5, "once") == [84, 84]
    assert await left(5, "once") == [84, 84]
    assert await left(5) == [79, 79]
    assert [each.remaining for each in await limiter.look("acme", limits)] == [79, 79]
    assert await left(1, epoch=2**60) == [78, 78]
    assert await limiter.charge(Charge("acme", 2**60 - 1, "k1", limits, 1)) == EpochMoved(2**60)
    world.clock.time += DAY
    assert await left(1, epoch=2**60) == [99, 99]


# ------------------------------------------------------------------------------------------------- several processes


async def hammer(
    world: World, limits: Sequence[Counter], processes: int, seconds: float, disturb: Callable[[], None] | None = None
) -> tuple[int, int]:
    """Have processes charge until all are denied or time is up; return what was admitted, and how many were denied."""
    limiters = [world.process() for _ in range(processes)]
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    admitted = denied = 0
    chooser = random.Random(1)

    async def caller(limiter: RedisLimiter) -> None:
        nonlocal admitted, denied
        for _ in range(1_000_000):
            cost = chooser.choice((1, 1, 1, 2, 3, 17))
            outcome = await decided(limiter, limits, cost)
            assert not outcome.degraded
            if outcome.denied is None:
                admitted += cost
            elif cost == 1:
                denied += 1
                return
            if loop.time() > end:
                return

    async def disturber() -> None:
        while disturb is not None and loop.time() < end:
            await asyncio.sleep(0.03)
            disturb()

    disturbing = asyncio.create_task(disturber())
    await asyncio.gather(*(caller(limiter) for limiter in limiters for _ in range(8)))
    disturbing.cancel()
    await asyncio.gather(disturbing, return_exceptions=True)
    for limiter in limiters:
        await limiter.close()
    return admitted, denied


@pytest.mark.parametrize("per", [SHORT, LONG, DAILY, LIFETIME])
async def test_processes_at_once_admit_exactly_the_amount(world: World, per: Per) -> None:
    """Never one too many, and no fewer: nothing is lost by marks that several raise at once."""
    assert await hammer(world, (counter(2_000, per),), 4, 60) == (2_000, 32)


@pytest.mark.parametrize("per", [LONG, DAILY, LIFETIME])
async def test_flushing_under_load_refills_nothing_and_costs_a_block_each_time(world: World, per: Per) -> None:
    """Redis loses everything again and again while processes charge: the sum of all admissions stays in the amount."""
    flushes = 0

    def flush() -> None:
        nonlocal flushes
        flushes += 1
        world.server.do("FLUSHALL")

    limits = (counter(20_000, per),)
    admitted, denied = await hammer(world, limits, 4, 60, flush)
    assert denied == 32
    assert flushes > 2
    block = 200
    assert 20_000 - flushes * (block + 17) <= admitted <= 20_000


async def test_a_flush_in_the_middle_of_a_day_costs_a_block_at_most(world: World) -> None:
    """What was used is used still, in every limit that outlives Redis; a minute's window starts empty."""
    limits = [counter(1_000, per, str(per)) for per in (DAILY, Calendar(Period.MONTH), LIFETIME, LONG, SHORT)]
    limiter = world.process()
    for _ in range(433):
        assert (await decided(limiter, limits)).denied is None
    world.server.do("FLUSHALL")
    *durable, short = await used(limiter, *limits)
    assert all(433 <= each <= 443 for each in durable), durable
    assert short == 0


async def test_an_idle_counter_costs_nothing_when_redis_forgets_it(world: World) -> None:
    """A counter whose time is over has no mark that counts: the next day, hour, month begins with nothing used."""
    limits = [counter(1_000, per, str(per)) for per in (DAILY, Calendar(Period.MONTH), LONG)]
    limiter = world.process()
    await decided(limiter, limits, 5)
    await redis_counters.answered()
    world.clock.time += 33 * DAY
    world.server.do("FLUSHALL")
    assert await used(limiter, *limits) == [0, 0, 0]


async def test_a_mark_is_used_for_a_day_at_most(world: World) -> None:
    """So that the database may forget it: what is charged much later is charged under a mark of its time."""
    limiter = world.process()
    hourly = counter(1_000, LONG)
    await decided(limiter, (hourly,))
    await redis_counters.answered()
    expires = (await world.marks.load([hourly.id]))[hourly.id].expire_time
    assert expires is not None
    world.clock.time = expires
    assert await world.marks.forget(expires + 1, 10) == 1
    await decided(limiter, (hourly,), 2)
    world.server.do("FLUSHALL")
    assert 2 <= (await used(limiter, hourly))[0] <= 12


async def test_everything_in_redis_ends_but_epochs_and_lifetimes(world: World) -> None:
    """Its memory is bounded by what is used, not by what ever was."""
    limiter = world.process()
    limits = [counter(1_000, per, str(per)) for per in (DAILY, LONG, SHORT)]
    await decided(limiter, limits, 1, "r1")
    await limiter.adjust("acme", limits, 1, once="a1")
    await decided(limiter, [counter(10, LIFETIME, "life")])
    await redis_counters.answered()
    with world.server.client() as client:
        endless = {key for key in client.keys("*") if client.ttl(key) == -1}
    assert endless == {b"fg:{acme}", b"fg:{acme}:c:acme/life"}


# --------------------------------------------------------------------------------------------- another Redis takes over


def take_over(server: RedisServer) -> None:
    """Have the server be what a replica is that was made the primary: the same data, another replication id."""
    server.do("REPLICAOF", "127.0.0.1", "1")
    server.do("REPLICAOF", "NO", "ONE")


async def test_after_a_failover_epochs_and_marks_of_the_old_primary_do_not_count(world: World) -> None:
    """They may be from before what the old one acknowledged last: both are read from the database."""
    limiter = world.process()
    limits = (counter(1_000, DAILY, "day"), counter(1_000, SHORT, "minute"))
    await decided(limiter, limits, 5)
    await limiter.publish("acme", 3)
    await redis_counters.answered()
    take_over(world.server)
    missing = await limiter.charge(Charge("acme", 3, "k1", limits, 1))
    assert isinstance(missing, EpochMissing)
    await limiter.seed("acme", 4, missing.incarnation)
    assert await limiter.charge(Charge("acme", 3, "k1", limits, 1)) == EpochMoved(4)
    day, minute = await used(limiter, *limits)
    assert 5 <= day <= 15
    assert minute == 5  # what is left of it is better than nothing
    await decided(limiter, limits, 990 - day, epoch=4)


async def test_a_seed_from_before_a_failover_fails(world: World) -> None:
    """The incarnation under which it read was left in a Redis that may have been told more since."""
    limiter = world.process()
    missing = await limiter.charge(Charge("acme", 1, "k1"))
    assert isinstance(missing, EpochMissing)
    take_over(world.server)
    await limiter.seed("acme", 1, missing.incarnation)
    anew = await limiter.charge(Charge("acme", 1, "k1"))
    assert isinstance(anew, EpochMissing)
    assert anew.incarnation != missing.incarnation
    await limiter.publish("acme", 2)
    take_over(world.server)
    await limiter.publish("acme", 3)
    await limiter.seed("acme", 2, anew.incarnation)
    assert isinstance(await limiter.charge(Charge("acme", 3, "k1")), EpochMissing)


async def test_where_replication_ids_are_hidden_none_are_compared(world: World) -> None:
    """Then a failover goes unseen; nothing else changes."""
    limiter = world.process(replication_ids=False)
    limits = (counter(1_000, DAILY),)
    await decided(limiter, limits, 5)
    take_over(world.server)
    assert await limiter.charge(Charge("acme", 0, "k1", limits, 1)) == EpochMoved(1)
    assert await used(limiter, *limits) == [5]


class EpochHistory:
    """Publications, reads and seeds of one account, each as late as it likes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.limiter = world.process()
        self.database = 0
        self.published = 0
        self.reads: list[tuple[int, int]] = []
        """Epochs as they were read, each under an incarnation told before that."""

    async def change(self, _: int) -> None:
        """Commit and publish."""
        self.database += 1
        await self.publish(self.database)

    async def change_without_publishing(self, _: int) -> None:
        """Commit, and be killed."""
        self.database += 1

    async def publish(self, epoch: int) -> None:
        """Publish what was committed a while ago."""
        await self.limiter.publish("acme", min(epoch, self.database))
        self.published = max(self.published, min(epoch, self.database))

    async def seed(self, number: int) -> None:
        """Seed what was read a while ago."""
        if self.reads:
            epoch, incarnation = self.reads[number % len(self.reads)]
            await self.limiter.seed("acme", epoch, incarnation)

    async def check(self, epoch: int) -> None:
        """Check by a key of some age; where the epoch is missing, read it."""
        epoch = min(epoch, self.database)
        outcome = await self.limiter.charge(Charge("acme", epoch, "k1"))
        if isinstance(outcome, EpochMissing):
            self.reads.append((self.database, outcome.incarnation))
        else:
            assert isinstance(outcome, EpochMoved) or epoch >= self.published

    async def flush(self, _: int) -> None:
        """Empty Redis."""
        self.world.server.do("FLUSHALL")

    async def fail_over(self, _: int) -> None:
        """Replace Redis."""
        take_over(self.world.server)


epoch_moves = st.lists(
    st.tuples(
        st.sampled_from(
            (
                "change",
                "change_without_publishing",
                "publish",
                "check",
                "check",
                "check",
                "seed",
                "seed",
                "flush",
                "fail_over",
            )
        ),
        st.integers(0, 9),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(epoch_moves)
def test_no_check_is_decided_by_an_epoch_from_before_one_that_was_published(
    server: RedisServer, course: list[tuple[str, int]]
) -> None:
    """Whatever comes in whatever order, Redis emptied or replaced in between.

    That is the protocol of docs/adr/0001 as the scripts have it; its model explores the rest.
    """

    async def run() -> None:
        server.do("FLUSHALL")
        try:
            history = EpochHistory(World(server))
            for move, number in course:
                await getattr(history, move)(number)
        finally:
            await redis_counters.end()

    asyncio.run(run())


async def test_a_load_from_before_a_second_flush_seeds_nothing(world: World) -> None:
    """A slow read of a mark may not undo what was charged, marked and lost since."""
    slow, quick = world.process(), world.process()
    limits = (counter(1_000, DAILY),)
    await decided(quick, limits, 5)
    await redis_counters.answered()
    world.server.do("FLUSHALL")
    gate = world.marks.gate = asyncio.Event()
    looking = asyncio.create_task(slow.look("acme", limits))
    await world.marks.waiting.wait()
    world.marks.gate = None
    await decided(quick, limits, 400)
    await redis_counters.answered()
    world.server.do("FLUSHALL")
    before = await used(quick, *limits)
    gate.set()
    await looking
    assert await used(slow, *limits) == await used(quick, *limits) == before
    assert before[0] >= 405


async def test_a_database_that_stands_still_is_not_waited_for(world: World) -> None:
    """A counter that has to be read there is undecided in time, again and again; the next read is not held up."""
    limiter = world.process(patience=0.02)
    limits = (counter(1_000, DAILY),)
    gate = world.marks.gate = asyncio.Event()
    async with asyncio.timeout(5):
        for _ in range(3):
            with pytest.raises(UnavailableError):
                await limiter.look("acme", limits)
    world.marks.gate = None
    async with asyncio.timeout(5):
        assert await used(limiter, *limits) == [0]
    gate.set()
    await limiter.close()


async def test_a_late_mark_of_an_old_period_replaces_none_of_the_new(world: World) -> None:
    """Drawn up before Redis lost its memory, written the day after: what was charged since is not forgotten by that."""
    late, quick = world.process(), world.process()
    limits = (counter(1_000, DAILY),)
    await decided(quick, limits, 5)
    await redis_counters.answered()
    writes = world.marks.writes = asyncio.Event()
    charging = asyncio.create_task(decided(late, limits, 600))
    await world.marks.waiting.wait()
    world.marks.writes = None
    world.server.do("FLUSHALL")
    world.clock.time += DAY
    await decided(quick, limits, 7)
    await redis_counters.answered()
    charging.cancel()
    rows = await world.marks.load([limits[0].id])
    writes.set()
    await asyncio.sleep(0)
    world.server.do("FLUSHALL")  # before the late one can have noticed
    after = await world.marks.load([limits[0].id])
    assert after[limits[0].id].expire_time == rows[limits[0].id].expire_time
    assert (await used(quick, *limits))[0] >= 7
    await asyncio.gather(charging, return_exceptions=True)


async def test_where_a_clock_goes_back_marks_are_raised_still(world: World) -> None:
    """Redis comes back on a machine whose clock is a day behind: nothing stands still for that."""
    limiter = world.process()
    limits = (counter(1_000, Rolling(HOUR)),)
    await decided(limiter, limits, 5)
    await redis_counters.answered()
    world.server.do("FLUSHALL")
    world.clock.time -= 2 * DAY
    async with asyncio.timeout(10):
        for _ in range(60):
            assert (await decided(limiter, limits)).denied is None
    assert not any(world.told)


async def test_scripts_that_redis_forgot_are_sent_again(world: World) -> None:
    """SCRIPT FLUSH at any moment is not noticed by anyone."""
    limiter = world.process()
    limits = (counter(100, DAILY), counter(100, SHORT, "rate"))
    for number in range(100):
        if number % 7 == 0:
            world.server.do("SCRIPT", "FLUSH")
        assert (await decided(limiter, limits)).denied is None
    assert (await decided(limiter, limits)).denied is not None


# ------------------------------------------------------------------------------------------------------- lost answers


async def test_a_check_whose_answer_was_lost_is_not_sent_again_without_a_request_id(world: World) -> None:
    """It may have been charged: LostAnswerError says so, and it was charged once at most."""
    limits = (counter(1_000, SHORT),)
    with Proxy(world.server.port) as proxy:
        limiter = world.process(f"redis://127.0.0.1:{proxy.port}/0", timeout=0.5)
        await decided(limiter, limits)
        await redis_counters.answered()
        for _ in range(10):
            proxy.swallow_answers()
            with pytest.raises(LostAnswerError):
                await limiter.charge(Charge("acme", 1, "k1", limits, 1))
            proxy.pass_on()
            await recovered(limiter)
        assert await used(limiter, *limits) == [11]


async def test_a_check_with_a_request_id_survives_a_lost_answer_and_is_charged_once(world: World) -> None:
    """It is sent again by itself; so are publications, looks and adjustments."""
    limits = (counter(1_000, DAILY),)
    await decided(world.process(), limits)
    asked: list[Callable[[RedisLimiter], Awaitable[object]]] = [
        lambda limiter: limiter.charge(Charge("acme", 1, "k1", limits, 1, "r1")),
        lambda limiter: limiter.charge_many([Charge("acme", 1, "k1", limits, 1, f"r{number}") for number in (2, 3)]),
        lambda limiter: limiter.adjust("acme", limits, 1, once="a1"),
        lambda limiter: limiter.publish("acme", 1),
        lambda limiter: limiter.look("acme", limits),
    ]
    with Proxy(world.server.port) as proxy:
        for ask in asked:
            limiter = world.process(f"redis://127.0.0.1:{proxy.port}/0", timeout=5)
            await limiter.look("acme", limits)
            proxy.truncate_answers(1)
            await ask(limiter)
        assert await used(world.process(), *limits) == [5]


async def recovered(limiter: RedisLimiter) -> None:
    """Return when Redis answers again."""
    for _ in range(500):
        try:
            await limiter.look("acme", (counter(1, SHORT, "other"),))
        except UnavailableError:
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError("it did not come back")


@pytest.mark.parametrize("accounts", [1, 3, 256])
async def test_many_charges_go_in_one_write_and_64_in_a_call(world: World, accounts: int) -> None:
    """256 checks, of however many accounts: four calls of the script, all under way at once; each in its order."""
    limiter = world.process()
    client = limiter._client
    assert isinstance(client, TimedClient)
    limits = [(counter(1_000, SHORT, f"a{number}/rate"),) for number in range(accounts)]
    for number, limit in enumerate(limits):
        await decided(limiter, limit, account=f"a{number}")
    asked = client.asked["charge"]
    charges = [Charge(f"a{each % accounts}", 1, "k1", limits[each % accounts], 1) for each in range(256)]
    together = asyncio.create_task(limiter.charge_many(charges))
    await asyncio.sleep(0)
    assert client.asked["charge"] == asked + 4
    told = [one.standings[0].remaining for one in await together if isinstance(one, Charged)]
    assert told == [998 - each // accounts for each in range(256)]


async def test_what_a_turn_of_the_loop_asks_for_goes_in_one_call(world: World) -> None:
    """Callers that know nothing of each other: each is told its own, and who has gone by then is not charged."""
    limiter = world.process()
    client = limiter._client
    assert isinstance(client, TimedClient)
    limits = {name: (counter(100, SHORT, f"{name}/rate"),) for name in "abc"}
    for name, limit in limits.items():
        await decided(limiter, limit, account=name)
    asked = client.asked["charge"]
    callers = [
        asyncio.create_task(limiter.charge(Charge(name, 1, "k1", limit, cost)))
        for cost in (1, 10)
        for name, limit in limits.items()
    ]
    await asyncio.sleep(0)
    callers[1].cancel()
    told = await asyncio.gather(*callers, return_exceptions=True)
    assert client.asked["charge"] == asked + 1
    assert isinstance(told[1], asyncio.CancelledError)
    left = [one.standings[0].remaining for one in told if isinstance(one, Charged)]
    assert left == [98, 98, 88, 89, 88]


async def test_checks_that_may_be_sent_again_go_by_themselves_and_all_in_order(world: World) -> None:
    """Of one account a later check is never in an earlier call, whatever of it may be sent again."""
    limiter = world.process()
    limit = (counter(1_000, SHORT),)
    await decided(limiter, limit)
    kinds = [0, 1, 0, 0, 1, 1, 0]
    told = await limiter.charge_many(
        [Charge("acme", 1, "k1", limit, 1, f"r{each}" if named else "") for each, named in enumerate(kinds)]
    )
    assert [one.standings[0].remaining for one in told if isinstance(one, Charged)] == list(range(998, 991, -1))


async def test_a_turn_whose_answer_is_lost_charges_nothing_twice(world: World) -> None:
    """Of two checks of one turn, the one with a request id is sent again; the other is lost, and counted once."""
    limits = {name: (counter(1_000, SHORT, f"{name}/rate"),) for name in "ab"}
    untimed = world.process(timed=False)
    for name, limit in limits.items():
        await decided(untimed, limit, account=name)
    with Proxy(world.server.port) as proxy:
        limiter = world.process(f"redis://127.0.0.1:{proxy.port}/0", timed=False)
        await limiter.look("a", limits["a"])
        proxy.truncate_answers(1)
        told = await asyncio.gather(
            limiter.charge(Charge("a", 1, "k1", limits["a"], 1, "named")),
            limiter.charge(Charge("b", 1, "k1", limits["b"], 1)),
            return_exceptions=True,
        )
    assert [type(one) for one in told] == [Charged, LostAnswer]
    for name, limit in limits.items():
        (left,) = await untimed.look(name, limit)
        assert left.remaining == 998


async def test_all_checks_of_a_turn_are_told_that_their_answer_is_lost(world: World) -> None:
    """None of them waits for ever."""
    limit = (counter(1_000, SHORT),)
    await decided(world.process(timed=False), limit)
    with Proxy(world.server.port) as proxy:
        limiter = world.process(f"redis://127.0.0.1:{proxy.port}/0", timed=False, timeout=0.3)
        await limiter.look("acme", limit)
        proxy.stall()
        charges = [limiter.charge(Charge("acme", 1, "k1", limit, 1)) for _ in range(5)]
        told = await asyncio.gather(*charges, return_exceptions=True)
    assert [type(one) for one in told] == [LostAnswer] * 5


async def test_what_can_not_be_asked_fails_by_itself(world: World) -> None:
    """A time zone that this process does not know: again and again, and never the checks of its turn, or its batch."""
    limiter = world.process()
    good = (counter(1_000, DAILY, "good/daily"),)
    bad = (counter(1_000, DAILY, "bad/daily", "Nowhere/Atlantis"),)
    await decided(limiter, good, account="good")
    charges = [Charge(name, 1, "k1", of, 1) for name, of in (("good", good), ("bad", bad), ("good", good))]

    async def one_by_one() -> Sequence[object]:
        return await asyncio.gather(*map(limiter.charge, charges), return_exceptions=True)

    left = 999
    for ask in (one_by_one, one_by_one, lambda: limiter.charge_many(charges)):
        first, broken, last = await ask()
        assert isinstance(broken, UnavailableError)
        assert "Nowhere/Atlantis" in str(broken)
        assert [each.standings[0].remaining for each in (first, last) if isinstance(each, Charged)] == [
            left - 1,
            left - 2,
        ]
        left -= 2


@pytest.mark.parametrize("server_name", SERVERS)
async def test_what_a_server_refuses_for_the_moment_is_an_outage(tmp_path: Path, server_name: str) -> None:
    """A primary that became a replica, one that is out of memory: nothing happened, and so it says."""
    limit = (counter(1_000, SHORT),)
    with RedisServer(tmp_path / "redis", binary=SERVERS[server_name]) as server:
        limiter = World(server).process(timed=False, timeout=0.5)
        await decided(limiter, limit)
        for refused, well in (
            (("REPLICAOF", "127.0.0.1", 1), ("REPLICAOF", "NO", "ONE")),
            (("CONFIG", "SET", "maxmemory", 1), ("CONFIG", "SET", "maxmemory", 0)),
        ):
            server.do(*refused)
            with pytest.raises(StoreUnavailable):
                await limiter.charge(Charge("acme", 1, "k1", limit, 1))
            server.do(*well)
            await recovered(limiter)
            await decided(limiter, limit)
        await redis_counters.end()


def short_state(used: float, head: float, newest: float) -> bytes:
    """A window's state, packed."""
    return struct.pack("<ddd", used, head, newest)


SPOILT = {
    "account": None,
    "counter": None,
    "a word": b"many",
    "digits": b"0123456789" * 3,
    "too little": b"x" * 23,
    "nothing": b"",
    "no number used": short_state(math.nan, 0, 0),
    "less than nothing used": short_state(-5, 0, 0),
    "endlessly little used": short_state(-math.inf, 0, 0),
    "endlessly much used": short_state(math.inf, 0, 0),
    "no number at its head": short_state(1, math.nan, 0),
    "an endless head": short_state(1, math.inf, 0),
    "no number newest": short_state(1, 0, math.nan),
    "less than nothing newest": short_state(1, 0, -1),
}


async def begun(limiter: RedisLimiter, names: str) -> list[Charge]:
    """Make such a charge of an account of each name, and return them, to be made again."""
    charges = [Charge(name, 1, "k1", (counter(100, SHORT, f"{name}/rate"),), 1) for name in names]
    for each in charges:
        await decided(limiter, each.counters, account=each.account_id)
    return charges


@pytest.mark.parametrize("spoilt", SPOILT)
async def test_what_is_not_ours_fails_the_checks_of_its_account_only(world: World, spoilt: str) -> None:
    """A key of another kind, or no state where one was: the checks before and behind it are decided, and charged."""
    limiter = world.process()
    charges = [each for each in await begun(limiter, "abc") for _ in range(2)]
    with world.server.client() as client:
        (of_counter,) = client.keys("fg:{b}:c:*")
        state = SPOILT[spoilt]
        if state is None:
            client.set("fg:{b}" if spoilt == "account" else of_counter, "other")
        else:
            client.hset(of_counter, mapping={"s": state})
    told = await limiter.charge_many(charges)
    assert [one.standings[0].remaining for one in told if isinstance(one, Charged)] == [98, 97, 98, 97]
    assert [type(one) for one in told[2:4]] == [ScriptFailed] * 2
    with pytest.raises(ScriptFailed):
        await limiter.charge(charges[2])
    if spoilt != "account":
        with pytest.raises(ScriptFailed):
            await limiter.look("b", charges[2].counters)


@pytest.mark.parametrize("epoch", [b"", b"zz\xff", b"-1", b"1.5", b"\0"])
async def test_what_is_no_epoch_fails_the_checks_of_its_account_only(world: World, epoch: bytes) -> None:
    """It is neither below the check's own, which would admit it, nor an answer that nobody can read."""
    limiter = world.process()
    charges = await begun(limiter, "abc")
    with world.server.client() as client:
        kept = client.hget("fg:{b}", "e")
        client.hset("fg:{b}", mapping={"e": kept[:-1] + epoch})
    assert [type(one) for one in await limiter.charge_many(charges)] == [Charged, ScriptFailed, Charged]
    leased = LeaseCharge("b", 1, charges[1].counters, 10, SECOND, "lease")
    with pytest.raises(ScriptFailed):
        await limiter.lease(leased)


async def test_what_is_no_incarnation_fails_the_checks_of_its_account_only(world: World) -> None:
    """An answer that cannot be read is for the one that it answers."""
    limiter = world.process()
    (well,) = await begun(limiter, "a")
    broken = well._replace(account_id="b", counters=(counter(100, SHORT, "b/rate"),))
    assert isinstance(await limiter.charge(broken), EpochMissing)
    with world.server.client() as client:
        client.hset("fg:{b}", mapping={"i": "many"})
    assert [type(one) for one in await limiter.charge_many([well, broken])] == [Charged, ScriptFailed]
    with pytest.raises(ScriptFailed):
        await limiter.charge(broken)


# Of what outlives Redis: charged, mark, marked, used, the head or the end, newest.
SPOILT_LONG = {
    f"{what} at {place}": (number, place)
    for what, number in (("no number", math.nan), ("no end", math.inf), ("no beginning", -math.inf))
    for place in (0, 1, 3, 4, 5)
}


@pytest.mark.parametrize("per", [LONG, DAILY, LIFETIME])
@pytest.mark.parametrize("spoilt", ["a byte more", *SPOILT_LONG])
async def test_what_is_not_ours_in_a_counter_that_outlives_redis_fails_too(world: World, spoilt: str, per: Per) -> None:
    """It begins as a state of this Redis does, and is no state: no check has room under it, and no lease."""
    limiter = world.process()
    limit = (counter(1_000, per),)
    await decided(limiter, limit)
    with world.server.client() as client:
        (of_counter,) = client.keys("fg:{acme}:c:*")
        state = client.hget(of_counter, "s") + b"1"
        if spoilt in SPOILT_LONG:
            number, place = SPOILT_LONG[spoilt]
            id_, numbers = state[:-49], list(struct.unpack("<6d", state[-49:-1]))
            numbers[place] = number
            state = id_ + struct.pack("<6d", *numbers)
        client.hset(of_counter, mapping={"s": state})
    with pytest.raises(ScriptFailed):
        await limiter.charge(Charge("acme", 1, "k1", limit, 500))
    with pytest.raises(ScriptFailed):
        await limiter.lease(LeaseCharge("acme", 1, limit, 10, SECOND, "lease"))


async def test_slots_without_a_state_do_not_count(world: World) -> None:
    """Left by something else, they are not taken off what is used when their sub-windows have passed."""
    limiter = world.process()
    limit = (counter(60, SHORT),)
    with world.server.client() as client:
        client.hset("fg:{acme}:c:acme/limit", mapping=dict.fromkeys(range(60), 20))
    for _ in range(3):
        assert (await decided(limiter, limit, 20)).denied is None
        world.clock.time += 5 * SECOND
    for _ in range(8):
        assert (await decided(limiter, limit)).denied is not None
        world.clock.time += 5 * SECOND


async def test_counters_are_small_and_can_be_looked_at(world: World) -> None:
    """Redis keeps them in its compact form; what the ADR says for people who look tells the state."""
    kinds: Sequence[Per] = (SHORT, LONG, DAILY, LIFETIME)
    limits = [counter(100, each, f"{number}") for number, each in enumerate(kinds)]
    limiter = world.process()
    await decided(limiter, limits, 7)
    page = (Path(__file__).parents[2] / "docs/adr/0010-counters-in-redis.md").read_text(encoding="utf-8")
    (script,) = re.findall(r'^redis-cli EVAL "(.*)" 1 \'<key>\'$', page, re.MULTILINE)
    with world.server.client() as client:
        for number in range(4):
            key = f"fg:{{acme}}:c:acme/{number}"
            assert client.object("encoding", key) in {b"listpack", b"ziplist"}
            if number:
                charged, mark, _, used, _, newest, _ = client.eval(script, 1, key)
                assert (used, newest, charged <= mark) == (7, 7 if number == 1 else 0, True)
        script = script.replace("'<dddddd', s, #s - 47", "'<ddd', s")
        assert client.eval(script, 1, "fg:{acme}:c:acme/0")[::2] == [7, 7]


# -------------------------------------------------------------------------------------------------- by Redis' own clock


async def test_the_clock_is_that_of_redis(world: World) -> None:
    """A process whose own clock is months off counts as the others do: only Redis' time decides."""
    wrong, right = world.process(timed=False), world.process(timed=False)
    world.clock.time = 1_000 * DAY
    limits = tuple(counter(10, per, str(per)) for per in (DAILY, Calendar(Period.MONTH), SHORT, LONG))
    for limiter in (wrong, right):
        for _ in range(5):
            assert (await decided(limiter, limits)).denied is None
        world.clock.time = TODAY * 2
    denied = await decided(wrong, limits)
    assert denied.denied is not None
    assert [each.remaining for each in denied.standings] == [0, 0, 0, 0]
    with world.server.client() as client:
        seconds, _ = client.time()
    reset = denied.standings[0].reset_time
    assert reset is not None
    assert seconds * SECOND - 60 * SECOND < reset <= (seconds // 86_400 + 1) * DAY + DAY


def test_the_scripts_are_shipped(tmp_path: Path) -> None:
    """Each is a file beside the code that loads it, and says what its KEYS and ARGV are."""
    from formgate_server.storage.redis import lua  # noqa: PLC0415 - what is tested

    for script in (lua.CHARGE, lua.LOAD, lua.PUBLISH, lua.RAISE, lua.REFUND, lua.RESERVE, lua.SEED):
        assert all(f"-- {word}" in script.source for word in ("KEYS:", "ARGV:", "Result:")), script.name


def test_what_outlives_redis_is_most_of_these() -> None:
    """Else this file would prove little."""
    assert [outlives_its_store(of.limit) for of in LIMITS] == [False, False, False, True, True, True, True, True]
