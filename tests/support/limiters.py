"""A limiter of each kind for tests: over marks that a test can put off, forbid and look at, by a clock that it sets.

``backend`` and ``world`` are fixtures; a test module imports them by their names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Protocol

import pytest
from hypothesis import settings

from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import Counter
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling
from formgate_server.core.ports import Charge, Charged, EpochMissing, Limiter, Reserved
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.redis.limiter import RedisLimiter
from tests.support import counters as redis_counters
from tests.support.clock import HOUR, MINUTE, SECOND, SettableClock
from tests.support.counters import TimedClient
from tests.support.redis import RedisCluster, RedisServer
from tests.support.soak import SOAK

histories = settings(max_examples=12_000 if SOAK else 600, deadline=None, derandomize=not SOAK, print_blob=SOAK)
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
