"""The Leases port, for every backend: what is charged ahead, what is given back, and that no limit is ever over it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from formgate_server.core.limits import Counter
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling
from formgate_server.core.ports import (
    EpochMissing,
    EpochMoved,
    LeaseCharge,
    Leased,
    LeaseResult,
    Leases,
    LeasesOut,
)
from tests.support.clock import DAY, HOUR, MINUTE, SECOND
from tests.support.limiters import World, backend, charge, quiet, run, running, used, world
from tests.support.limiters import seed as seed_epoch
from tests.support.soak import SOAK

__all__ = ["backend", "world"]  # fixtures

Per = Rolling | Calendar | Lifetime
HISTORIES = 4_000 if SOAK else 400
MINUTELY, HOURLY, DAILY, CREDITS = Rolling(MINUTE), Rolling(HOUR), Calendar(Period.DAY), Lifetime()


def counter(amount: int | None = 100, per: Per = MINUTELY, name: str = "limit") -> Counter:
    """Make a counter of the account."""
    return Counter(f"acme/{name}", Limit(name, Holder.ACCOUNT, amount, per), "UTC")


def leases(of: World) -> Leases:
    """Return the limiter as what grants leases."""
    limiter = of.limiter
    assert hasattr(limiter, "lease")
    return limiter  # type: ignore[return-value]


async def ask(
    of: World, counters: Sequence[Counter], units: int, lease_id: str, duration: int = SECOND, epoch: int = 1
) -> LeaseResult:
    """Ask for a lease."""
    return await leases(of).lease(LeaseCharge("acme", epoch, tuple(counters), units, duration, lease_id))


async def lease(of: World, counters: Sequence[Counter], units: int, lease_id: str, duration: int = SECOND) -> Leased:
    """Ask for a lease under an epoch that is known to be right."""
    leased = await ask(of, counters, units, lease_id, duration)
    assert isinstance(leased, Leased)
    return leased


async def test_leased_units_are_charged_at_once(world: World) -> None:
    """Whoever asks in the meantime sees them as used: they are the holder's alone."""
    limits = [counter(name="a"), counter(40, DAILY, "b")]
    leased = await lease(world, limits, 8, "l1")
    assert (leased.units, leased.duration, leased.degraded) == (8, SECOND, False)
    assert [each.remaining for each in leased.standings] == [92, 32]
    assert await used(world.limiter, limits) == [8, 8]


async def test_a_lease_ends_with_the_sub_window_and_the_period_that_it_is_charged_in(world: World) -> None:
    """What is used at its very end still counts for a whole window, and never in another period."""
    world.clock.time += 700_000
    assert (await lease(world, [counter(name="a")], 1, "l1")).duration == 300_000
    assert (await lease(world, [counter(per=HOURLY, name="b")], 1, "l2")).duration == SECOND
    world.clock.time = world.clock.time // DAY * DAY + DAY - 250_000
    assert (await lease(world, [counter(per=DAILY, name="c")], 1, "l3")).duration == 250_000
    assert (await lease(world, [counter(per=CREDITS, name="d")], 1, "l4")).duration == SECOND


async def test_half_of_what_is_left_is_left_to_others(world: World) -> None:
    """One holder does not take all of a limit; its last unit is never leased."""
    limits = [counter(10)]
    granted = [(await lease(world, limits, 100, f"l{each}")).units for each in range(6)]
    assert granted == [5, 2, 1, 1, 0, 0]
    assert await used(world.limiter, limits) == [9]


@pytest.mark.parametrize("per", [HOURLY, DAILY, CREDITS])
async def test_a_lease_of_what_outlives_its_store_is_a_block_at_most(world: World, per: Per) -> None:
    """It stays under the mark that the database holds, so that a lost store refills none of it."""
    limits = [counter(100, per)]
    first = await lease(world, limits, 80, "l1")
    assert 1 <= first.units <= 10
    await quiet()
    (after,) = await world.used_after_a_crash(limits)
    assert first.units <= after <= first.units + 10


async def test_what_has_no_amount_is_leased_as_wanted(world: World) -> None:
    """An unlimited key's lease is bounded by its time only."""
    assert (await lease(world, [counter(None)], 1_000, "l1")).units == 1_000
    assert (await lease(world, [], 1_000, "l2")).units == 1_000


async def test_a_lease_of_what_has_no_amount_is_not_remembered(world: World) -> None:
    """There is nothing to give back of it: however many there are, no store grows by them. A change knows of it."""
    for limits in ([counter(None)], []):
        assert (await lease(world, limits, 1_000, "l1")).units == 1_000
        assert await leases(world).settle("acme", "l1", 1_000) == 0
        assert (await lease(world, limits, 1_000, "l1")).units == 1_000
    assert (await leases(world).out("acme")).left == SECOND


async def test_none_is_granted_by_an_epoch_that_is_over(world: World) -> None:
    """The epoch is compared in the step that charges; nothing is charged, and no lease is out."""
    await world.limiter.publish("acme", 2)
    limits = [counter()]
    assert await ask(world, limits, 5, "l1", epoch=1) == EpochMoved(2)
    assert (await leases(world).out("acme")).left == 0
    assert isinstance(await ask(world, limits, 5, "l2", epoch=3), Leased)
    assert await ask(world, limits, 5, "l3", epoch=2) == EpochMoved(3)


async def test_none_is_granted_by_an_epoch_that_is_not_known(backend: str) -> None:
    """An epoch missing in the counters' store is read from the database first, as by a check."""
    unknowing = World(backend)
    missing = await ask(unknowing, [counter()], 5, "l1")
    assert isinstance(missing, EpochMissing)
    await unknowing.limiter.seed("acme", 1, missing.incarnation)
    assert isinstance(await ask(unknowing, [counter()], 5, "l1"), Leased)


async def test_what_is_left_is_given_back_once(world: World) -> None:
    """However often it is sent, and never more than was leased."""
    limits = [counter(name="a"), counter(40, DAILY, "b")]
    await lease(world, limits, 8, "l1")
    await quiet()
    await lease(world, limits, 2, "l2")
    given = [await leases(world).settle("acme", "l1", 5) for _ in range(3)]
    assert given == [5, 0, 0]
    assert await used(world.limiter, limits) == [5, 5]
    assert await leases(world).settle("acme", "l2", 10**18) == 2
    assert await leases(world).settle("acme", "l3", 1) == 0
    assert await used(world.limiter, limits) == [3, 3]


async def test_settled_with_nothing_left_it_is_settled(world: World) -> None:
    """Who says that all was used can not say later that it was not."""
    await lease(world, [counter()], 8, "l1")
    assert await leases(world).settle("acme", "l1", 0) == 0
    assert await leases(world).settle("acme", "l1", 8) == 0
    assert await used(world.limiter, [counter()]) == [8]


async def test_a_late_settlement_gives_nothing_to_another_period(world: World) -> None:
    """What was charged yesterday is given back to yesterday; to credits it is given back whenever it comes."""
    limits = [counter(40, DAILY, "b"), counter(100, CREDITS, "c")]
    world.clock.time = world.clock.time // DAY * DAY + DAY - SECOND
    await lease(world, limits, 8, "l1")
    world.clock.time += 2 * SECOND
    await charge(world.limiter, limits, 3)
    await leases(world).settle("acme", "l1", 8)
    assert await used(world.limiter, limits) == [3, 3]


async def test_a_lease_is_remembered_for_10_minutes(world: World) -> None:
    """After that what is left of it stays charged, and costs quota only."""
    limits = [counter(100, CREDITS)]
    await lease(world, limits, 2, "l1")
    world.clock.time += 10 * MINUTE + SECOND
    assert await leases(world).settle("acme", "l1", 2) == 0
    assert await used(world.limiter, limits) == [2]


async def test_of_an_id_that_is_remembered_nothing_is_leased(world: World) -> None:
    """A request that was sent twice charges once."""
    limits = [counter()]
    assert (await lease(world, limits, 8, "l1")).units == 8
    assert (await lease(world, limits, 8, "l1")).units == 0
    assert await used(world.limiter, limits) == [8]


async def test_a_change_knows_until_when_leases_are_out(world: World) -> None:
    """The longest of them, however many were granted, whether or not they are settled."""
    await lease(world, [counter(name="a")], 1, "l1", 900_000)
    world.clock.time += 100_000
    await lease(world, [], 1, "l2", 200_000)
    await leases(world).settle("acme", "l1", 1)
    await world.limiter.publish("acme", 2)
    assert (await leases(world).out("acme")).left == 800_000
    world.clock.time += 800_000
    assert (await leases(world).out("acme")).left == 0


async def test_leases_of_before_are_not_known(backend: str) -> None:
    """A counters' store that lost its memory says since when it knows; of a new account it knows all."""
    lost = World(backend)
    await lost.limiter.publish("acme", 1)
    lost.clock.time += 300_000
    assert await leases(lost).out("acme") == LeasesOut(0, 300_000)
    await leases(lost).none_out("new")
    assert await leases(lost).out("new") == LeasesOut(0, None)
    await lost.limiter.publish("new", 2)
    assert await leases(lost).out("new") == LeasesOut(0, None)


async def test_no_lease_while_marks_can_not_be_written(world: World) -> None:
    """What could be refilled by a crash is not handed out."""
    from formgate_server.core.errors import UnavailableError  # noqa: PLC0415 - of this test only

    limits = [counter(100, DAILY)]
    await charge(world.limiter, limits, 1)
    world.marks.broken = UnavailableError
    for _ in range(40):  # up to the mark, and beyond
        await charge(world.limiter, limits, 1)
    await quiet()
    refused = await lease(world, limits, 5, "l1")
    assert (refused.units, refused.degraded) == (0, True)


# ------------------------------------------------------------------------------------------------------------ histories


@dataclass
class Held:
    """A lease that somebody holds."""

    end: int
    units: int
    lease_id: str


@dataclass
class Course:
    """What was admitted, and by which leases more may be."""

    world: World
    counters: Sequence[Counter]
    held: list[Held] = field(default_factory=list)
    admitted: list[tuple[int, int]] = field(default_factory=list)
    told: list[object] = field(default_factory=list)
    leased: int = 0

    async def take(self, move: tuple[str, int, int]) -> None:  # noqa: C901, PLR0912 - a list of moves
        """Make a move."""
        what, number, time = move
        now = self.world.clock.time
        match what:
            case "lease":
                self.leased += 1
                leased = await lease(self.world, self.counters, number + 1, f"l{self.leased}", time + 1)
                self.told.append(leased)
                if leased.units:
                    self.held.append(Held(now + leased.duration, leased.units, f"l{self.leased}"))
            case "check":
                charged = await charge(self.world.limiter, self.counters, number + 1)
                self.told.append(charged)
                if charged.denied is None:
                    self.admitted.append((now, number + 1))
            case "fill":
                left = min(each.limit.amount or 0 for each in self.counters)
                while left:  # all that is left, by halves
                    charged = await charge(self.world.limiter, self.counters, left)
                    if charged.denied is None:
                        self.admitted.append((now, left))
                    left //= 2
            case "use" if self.held:
                one = self.held[number % len(self.held)]
                if now < one.end and one.units:
                    units = 1 + time % one.units
                    one.units -= units
                    self.admitted.append((now, units))
            case "settle" if self.held:
                one = self.held.pop(number % len(self.held))
                self.told.append(await leases(self.world).settle("acme", one.lease_id, one.units))
            case "crash" if self.held:
                del self.held[number % len(self.held)]
            case "late" if self.held:
                one = self.held[number % len(self.held)]
                if now < one.end and one.units:
                    self.world.clock.time = one.end - 1
                    self.admitted.append((one.end - 1, one.units))
                    one.units = 0
            case "sixtieths":
                per = self.counters[0].limit.per
                window = per.window if isinstance(per, Rolling) else MINUTE
                at = (now * 60 // window + 2 * number) * window // 60
                self.world.clock.time = max(now, at + time % 3 - 1)
            case "pass":
                self.world.clock.time += time

    def use_up(self) -> None:
        """Use all leases up, at their last moment."""
        for one in self.held:
            if one.units and one.end > self.world.clock.time:
                self.admitted.append((one.end - 1, one.units))

    def most(self, window: int) -> int:
        """Return the most that any closed interval of that length admitted."""
        return max(
            (sum(units for at, units in self.admitted if start <= at <= start + window) for start, _ in self.admitted),
            default=0,
        )

    def most_in_a_day(self) -> int:
        """Return the most that any day admitted."""
        days: dict[int, int] = {}
        for at, units in self.admitted:
            days[at // DAY] = days.get(at // DAY, 0) + units
        return max(days.values(), default=0)


KINDS = (
    *("lease", "lease", "check", "use", "use", "use", "settle", "crash", "pass"),
    *("late", "late", "sixtieths", "fill", "fill"),
)
TIMES = (0, 1, 500_000, 999_999, SECOND, 59 * SECOND, MINUTE, 61 * SECOND)
Moves = list[tuple[str, int, int]]


def moves_of(seed: int, times: Sequence[int] = TIMES) -> tuple[Moves, int, int]:
    """Return moves, an amount and a window: at random, for what upsets an inexact limit takes several moves."""
    rng = random.Random(seed)
    moves = [(rng.choice(KINDS), rng.randint(0, 30), rng.choice(times)) for _ in range(rng.randint(3, 40))]
    return moves, rng.randint(0, 40), rng.choice((6_000, SECOND, MINUTE, 61_000_003))


async def course_of(world: World, counters: Sequence[Counter], moves: Sequence[tuple[str, int, int]]) -> Course:
    """Make all moves; at the end every lease that is out is used up at its last moment."""
    await seed_epoch(world.limiter)
    course = Course(world, counters)
    for move in moves:
        await course.take(move)
    course.use_up()
    return course


@pytest.mark.parametrize("long", [1, 10])
def test_no_window_is_ever_over_its_amount(long: int) -> None:
    """Any number of leases, used at any moment of theirs, settled late or never, beside checks."""

    async def course() -> None:
        for seed in range(HISTORIES):
            moves, amount, window = moves_of(seed)
            made = await course_of(World("memory"), [counter(amount, Rolling(long * window))], moves)
            assert made.most(long * window) <= amount, seed

    run(course())


def test_no_day_is_ever_over_its_amount() -> None:
    """The same of calendar periods and credits, across midnights and crashes of the counters' store."""

    async def course(seed: int) -> None:
        at_night = World("memory")
        at_night.clock.time = at_night.clock.time // DAY * DAY + DAY - MINUTE
        await seed_epoch(at_night.limiter)
        moves, amount, _ = moves_of(seed)
        made = Course(at_night, [counter(amount, DAILY), counter(3 * amount, CREDITS, "credits")])
        for index, move in enumerate(moves):
            if index % 11 == seed % 11:
                await quiet()
                at_night.limiter = at_night.start()
                await seed_epoch(at_night.limiter)
            await made.take(move)
        made.use_up()
        assert made.most_in_a_day() <= amount, seed
        assert sum(units for _, units in made.admitted) <= 3 * amount, seed

    async def courses() -> None:
        for seed in range(HISTORIES // 4):
            await course(seed)

    run(courses())


@pytest.mark.parametrize("kind", ["redis"])
def test_redis_says_what_the_pure_code_says(request: pytest.FixtureRequest, kind: str) -> None:
    """The same histories through the script: the same units, times, standings and settlements."""
    name = running(request, kind)

    async def course() -> None:
        for seed in range(HISTORIES // 8):
            moves, amount, window = moves_of(seed)
            limits = [counter(amount, Rolling(window))]
            pure = await course_of(World("memory"), limits, moves)
            scripted = await course_of(World(name), limits, moves)
            assert scripted.told == pure.told, seed
            assert scripted.admitted == pure.admitted, seed

    run(course())
