"""The Limiter port: random histories, at every step as the pure ``spend`` says, with crashes at any point."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

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
from formgate_server.core.model import Lifetime, Rolling
from formgate_server.core.ports import Limiter
from tests.support import counters as redis_counters
from tests.support.clock import DAY, HOUR, MINUTE, SECOND
from tests.support.limiters import (
    DAILY,
    HOURLY,
    MINUTELY,
    MONTHLY,
    REMEMBERED,
    URLS,
    WIDE,
    Per,
    World,
    charge,
    counter,
    histories,
    quiet,
    replace_amount,
    run,
    seed,
    used,
)
from tests.support.redis import RedisServer
from tests.support.soak import SOAK

histories_in_redis = settings(histories, max_examples=2_000 if SOAK else 60)
"""Each step is a round trip, and each look several."""


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
