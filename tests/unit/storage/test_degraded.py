"""What goes on when a store is away: every cell of the table, over stores that a test takes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace

import pytest

from formgate_server.core.errors import CountersUnavailableError, LostAnswerError, UnavailableError
from formgate_server.core.freshness import Freshness
from formgate_server.core.limits import Counter, State, add, up_to_now
from formgate_server.core.model import Calendar, Holder, Limit, Period, Rolling, WhenDegraded
from formgate_server.core.ports import Charge, Charged, ChargeResult, EpochMoved, News, Reserved
from formgate_server.storage import degraded
from formgate_server.storage.degraded import CoalescedEpochs, DegradedLimiter
from formgate_server.storage.memory.counters import MemoryReservations
from formgate_server.storage.memory.limiter import MemoryLimiter
from formgate_server.storage.shares import Shares
from tests.support.clock import MINUTE, SettableClock

RATE = Counter("acme/k1/rate", Limit("rate", Holder.KEY, 100, Rolling(MINUTE)), "UTC")
DAILY = Counter("acme/daily", Limit("daily", Holder.ACCOUNT, 1_000, Calendar(Period.DAY)), "UTC")


class Redis(MemoryLimiter):
    """A counters' store that a test takes away."""

    error: UnavailableError | None = None
    charges_all_the_same = False
    failing: Collection[str] = ()
    """The accounts whose answers are lost."""
    full = False
    """Whether it answers, and takes no charge."""

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter``."""
        if charge.account_id in self.failing:
            raise LostAnswerError("lost")
        if self.full and charge.cost and charge.counters:
            raise CountersUnavailableError("full")
        if self.error is not None:
            if self.charges_all_the_same:
                await super().charge(charge)
            raise self.error
        return await super().charge(charge)

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter``."""
        if self.error is not None:
            return [self.error] * len(charges)
        return await super().charge_many(charges)

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """See ``Limiter``."""
        if self.error is not None:
            raise self.error
        if self.full:
            raise CountersUnavailableError("full")
        await super().adjust(account_id, counters, units, once=once)


class Database:
    """The Epochs port, which a test takes away."""

    def __init__(self) -> None:
        self.epochs = {"acme": 1}
        self.away = False
        self.reads = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def of(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """See ``Epochs``."""
        self.reads += 1
        found = {each: self.epochs[each] for each in account_ids if each in self.epochs}
        await self.gate.wait()
        if self.away:
            raise UnavailableError("The database is away.")
        return found

    async def since(self, moment: int | None) -> News:
        """See ``Epochs``."""
        raise AssertionError("only following asks for this")

    async def forget(self, before: int, most: int) -> int:
        """See ``Epochs``."""
        raise AssertionError("only retention asks for this")

    async def renew(self, after: str, most: int) -> Sequence[str]:
        """See ``Epochs``."""
        raise AssertionError("only a restore asks for this")


class World:
    """A process of two, its stores, and what it told."""

    def __init__(self, processes: int = 2) -> None:
        self.clock = SettableClock()
        self.seconds = 0.0
        self.marks = MemoryReservations()
        self.database = Database()
        self.redis = Redis(self.clock, self.marks)
        self.freshness = Freshness(lambda: self.seconds, max_staleness=30, database_grace=600)
        self.shares = Shares(self.clock, self.marks, processes)
        self.told: list[str] = []
        self.lost: list[int] = []
        self.limiter = DegradedLimiter(
            self.redis,
            self.shares,
            self.database,
            self.freshness,
            on_degraded=self.told.append,
            on_lost=self.lost.append,
        )

    async def begin(self) -> World:
        """Let the counters' store know the account."""
        await self.redis.publish("acme", 1)
        missing = await self.redis.charge(Charge("acme", 1, "k1"))
        await self.redis.seed("acme", 1, getattr(missing, "incarnation", 0))
        return self

    async def charge(
        self, cost: int = 1, *counters: Counter, epoch: int = 1, request_id: str = "", key: str = "k1"
    ) -> ChargeResult:
        """Charge what a check of a key does."""
        return await self.limiter.charge(Charge("acme", epoch, key, counters or (RATE,), cost, request_id))

    async def healed(self) -> None:
        """Wait until nothing is degraded any more."""
        async with asyncio.timeout(5):
            while (healing := self.limiter._healing) is not None:
                await asyncio.wait({healing}, timeout=1)

    def take_redis_away(self, *, lost: bool = False) -> None:
        """Let it answer no more."""
        self.redis.error = LostAnswerError("lost") if lost else CountersUnavailableError("away")


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Two stores that answer; what heals looks every hundredth of a second."""
    monkeypatch.setattr(degraded, "_RETRY_SECONDS", 0.01)
    made = await World().begin()
    yield made
    await made.limiter.close()


def admitted(outcome: ChargeResult) -> bool:
    """Tell whether a charge went through; a verdict by shares says so."""
    assert isinstance(outcome, Charged)
    return outcome.denied is None


async def test_while_all_is_well_nothing_is_degraded(world: World) -> None:
    """Verdicts are the counters' store's own."""
    outcome = await world.charge()
    assert isinstance(outcome, Charged)
    assert (outcome.denied, outcome.degraded, outcome.standings[0].remaining) == (None, False, 99)
    assert (world.told, world.database.reads) == ([], 0)


async def test_without_redis_each_process_has_its_share_of_what_was_left(world: World) -> None:
    """Of 100, 39 are used; two processes share 61: each lets 31 through, says so, and then denies by that limit."""
    await world.charge(39)
    world.take_redis_away()
    outcomes = [await world.charge() for _ in range(40)]
    assert [admitted(each) for each in outcomes] == [True] * 31 + [False] * 9
    last = outcomes[-1]
    assert isinstance(last, Charged)
    assert (last.denied, last.degraded, last.standings[0]) == (
        RATE.limit,
        True,
        last.standings[0]._replace(remaining=0),
    )
    assert last.retry_after is not None
    assert world.told == ["away"]


async def test_a_share_of_what_outlives_redis_is_known_by_its_mark(world: World) -> None:
    """Also to a process that has never seen the counter: what the mark may cover counts as used."""
    await world.marks.save({DAILY.id: Reserved(_day(world, 600), 10)})
    world.take_redis_away()
    outcomes = [await world.charge(1, DAILY) for _ in range(200)]
    assert sum(map(admitted, outcomes)) == (1_000 - 610) // 2


def _day(world: World, used: int) -> State:
    return add(up_to_now(DAILY, None, world.clock.now()), used)


async def test_shares_begin_anew_with_the_window(world: World) -> None:
    """What others had used no longer counts then; a share is half of all."""
    await world.charge(100)
    world.take_redis_away()
    assert not admitted(await world.charge())
    world.clock.time += 2 * MINUTE
    outcomes = [await world.charge() for _ in range(60)]
    assert sum(map(admitted, outcomes)) == 50


async def test_all_shares_or_none(world: World) -> None:
    """A denial by one limit charges no other."""
    tight = replace(RATE.limit, name="tight", amount=4)
    world.take_redis_away()
    limits = (DAILY, Counter("acme/k1/tight", tight, "UTC"))
    outcomes = [await world.charge(1, *limits) for _ in range(5)]
    assert [admitted(each) for each in outcomes] == [True, True, False, False, False]
    left = await world.charge(0, DAILY)
    assert isinstance(left, Charged)
    assert left.standings[0].remaining == 498


@pytest.mark.parametrize(("when", "admits"), [(WhenDegraded.ALLOW, 500), (WhenDegraded.DENY, 0)])
async def test_a_limit_says_what_becomes_of_it(world: World, when: WhenDegraded, admits: int) -> None:
    """Everything is allowed by it, or nothing."""
    world.take_redis_away()
    counter = RATE._replace(limit=replace(RATE.limit, when_degraded=when))
    outcomes = [await world.charge(1, counter) for _ in range(500)]
    assert sum(map(admitted, outcomes)) == admits
    assert all(isinstance(each, Charged) and each.degraded for each in outcomes)


async def test_a_request_is_charged_once_without_redis_too(world: World) -> None:
    """Repeated within a minute it is admitted, though nothing is left."""
    world.take_redis_away()
    for _ in range(50):
        assert admitted(await world.charge(1, request_id="r1"))
    assert admitted(await world.charge(49))
    assert admitted(await world.charge(1, request_id="r1"))
    assert not admitted(await world.charge())
    assert not admitted(await world.charge(2, request_id="r1"))
    assert not admitted(await world.charge(0, request_id="r1"))


async def test_the_epoch_is_the_databases(world: World) -> None:
    """A change that Redis was not told is known at the next check."""
    world.take_redis_away()
    world.database.epochs["acme"] = 2
    assert await world.charge() == EpochMoved(2)
    assert admitted(await world.charge(epoch=2))


async def test_an_account_that_is_gone_is_read_again(world: World) -> None:
    """Its keys are not decided by what was cached."""
    world.take_redis_away()
    del world.database.epochs["acme"]
    assert await world.charge() == EpochMoved(2)


async def test_a_read_begun_before_the_check_is_not_shared() -> None:
    """Whoever comes while a read is under way gets the next one, which all of them share."""
    database = Database()
    epochs = CoalescedEpochs(database)
    database.gate.clear()
    first = asyncio.create_task(epochs.of("acme"))
    await asyncio.sleep(0.001)
    database.epochs["acme"] = 2  # a change that returns now
    later = [asyncio.create_task(epochs.of("acme")) for _ in range(10)]
    await asyncio.sleep(0.001)
    database.gate.set()
    assert await first == 1
    assert await asyncio.gather(*later) == [2] * 10
    assert database.reads == 2


async def test_a_failed_read_fails_those_who_wait_for_it_and_no_others() -> None:
    """The next one reads anew."""
    database = Database()
    database.away = True
    epochs = CoalescedEpochs(database)
    for outcome in await asyncio.gather(*(epochs.of("acme") for _ in range(3)), return_exceptions=True):
        assert isinstance(outcome, UnavailableError)
    database.away = False
    assert await epochs.of("acme") == 1


async def test_back_again_what_was_let_through_is_charged_once(world: World) -> None:
    """And told; verdicts are exact again."""
    world.take_redis_away()
    for _ in range(7):
        await world.charge(1, RATE, DAILY)
    world.redis.error = None
    await world.healed()
    for _ in range(2):
        told = await world.charge(0, RATE, DAILY)
        assert isinstance(told, Charged)
        assert ([each.remaining for each in told.standings], told.degraded) == ([93, 993], False)
    assert world.told == ["away", ""]


async def test_what_may_have_been_charged_is_not_charged_again(world: World) -> None:
    """A lost answer: the check goes on by its share, and nothing is owed for it."""
    world.take_redis_away(lost=True)
    world.redis.charges_all_the_same = True
    assert admitted(await world.charge(5))
    world.redis.error = None
    await world.healed()
    told = await world.charge(0)
    assert isinstance(told, Charged)
    assert told.standings[0].remaining == 95


async def test_many_at_once_go_on_as_one_does(world: World) -> None:
    """Each with its own result, in order; one whose account moved takes no other along."""
    world.take_redis_away()
    charges = [Charge("acme", epoch, "k1", (RATE,), 1) for epoch in (1, 0, 1)]
    first, moved, last = await world.limiter.charge_many(charges)
    assert isinstance(first, Charged)
    assert isinstance(last, Charged)
    assert (first.denied, moved, last.degraded) == (None, EpochMoved(1), True)


async def test_without_the_database_known_keys_go_on(world: World) -> None:
    """By the epochs in Redis, and degraded, for ten minutes; then nothing is decided."""
    world.freshness.lost()
    world.seconds = 599
    outcome = await world.charge()
    assert isinstance(outcome, Charged)
    assert (outcome.denied, outcome.degraded) == (None, True)
    await world.redis.publish("acme", 2)
    assert await world.charge() == EpochMoved(2)
    world.seconds = 601
    with pytest.raises(UnavailableError):
        await world.charge(epoch=2)
    (many,) = await world.limiter.charge_many([Charge("acme", 2, "k1", (RATE,), 1)])
    assert isinstance(many, UnavailableError)


async def test_without_both_known_keys_go_on_for_max_staleness(world: World) -> None:
    """By heart: not by an epoch below one that a poll has told; then nothing is decided."""
    world.take_redis_away()
    world.freshness.read(0, {"acme": 2})
    world.freshness.lost()
    world.database.away = True
    assert await world.charge() == EpochMoved(2)
    assert admitted(await world.charge(epoch=2))
    world.seconds = 31
    with pytest.raises(UnavailableError):
        await world.charge(epoch=2)


@pytest.mark.parametrize("polled", [True, False])
async def test_one_read_that_fails_does_not_say_that_the_database_is_away(world: World, *, polled: bool) -> None:
    """The next poll does: where it reads, the check goes by what it tells; where it can not, by heart."""
    world.take_redis_away()
    world.seconds = 1.0  # the last poll was a second ago; a change since then is not known here
    world.database.away = True
    checking = asyncio.create_task(world.charge())
    await asyncio.sleep(0.01)
    assert not checking.done()
    world.freshness.read(0.5, {})  # that one began before the check
    await asyncio.sleep(0.01)
    assert not checking.done()
    if polled:
        world.freshness.read(1.0, {"acme": 2})
        assert await checking == EpochMoved(2)
    else:
        world.freshness.lost()
        assert admitted(await checking)


async def test_nothing_is_decided_by_heart_while_the_polls_are_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is not cut off from the database may not go on as if it were."""
    monkeypatch.setattr(degraded, "_PATIENCE_SECONDS", 0.01)
    world.take_redis_away()
    world.seconds = 1.0
    world.database.away = True
    with pytest.raises(UnavailableError):
        await world.charge()


@pytest.mark.parametrize("was_charged", [True, False])
async def test_answers_lost_again_and_again_renew_no_share(world: World, *, was_charged: bool) -> None:
    """Each loss begins an outage, which the next probe ends: what was let through in them is one share in all."""
    world.redis.charges_all_the_same = was_charged
    through = 0
    for _ in range(100):
        world.take_redis_away(lost=True)
        through += admitted(await world.charge())
        world.redis.error = None
        await world.healed()
        told = await world.charge(0)  # Redis answers between two losses, and so says what it has counted
        assert isinstance(told, Charged)
    assert 25 <= through <= 50
    world.clock.time += 2 * MINUTE
    world.take_redis_away(lost=True)
    assert admitted(await world.charge())


async def test_what_is_owed_is_known_before_it_is_paid(world: World) -> None:
    """An outage that follows at once goes on where the last one ended."""
    through = 0
    for _ in range(20):
        world.take_redis_away()
        for _ in range(10):
            through += admitted(await world.charge())
        world.limiter._settle("acme")
    assert through <= 100


async def test_no_error_of_a_store_is_taken_for_a_yes(world: World) -> None:
    """What is none of the counters' store's own goes through: nothing is decided."""
    world.redis.error = UnavailableError("the database takes no marks and has none")
    with pytest.raises(UnavailableError):
        await world.charge()


async def test_what_is_well_elsewhere_ends_no_outage(world: World) -> None:
    """One account's counters fail, another's do not: its share is one share, however often the others go through."""
    world.redis.failing = {"acme"}
    outcomes = []
    for _ in range(150):
        outcomes.append(await world.charge())
        await world.limiter.charge(Charge("other", 1, "k9"))
        await asyncio.sleep(0)
    assert sum(map(admitted, outcomes)) == 50
    assert world.told == ["lost"]


async def test_a_charge_under_way_at_recovery_is_owed_too(world: World) -> None:
    """It waited for its epoch while its account was settled: it is charged all the same, and begins no old share."""
    world.take_redis_away()
    world.database.gate.clear()
    late = [asyncio.create_task(world.charge()) for _ in range(5)]
    await asyncio.sleep(0.01)
    world.redis.error = None
    await asyncio.sleep(0.01)
    world.database.gate.set()
    assert all(map(admitted, await asyncio.gather(*late)))
    await world.healed()
    told = await world.charge(0)
    assert isinstance(told, Charged)
    assert (told.standings[0].remaining, told.degraded) == (95, False)


async def test_it_heals_without_traffic(world: World) -> None:
    """What is owed is charged though nobody checks any more; then it is told."""
    world.take_redis_away()
    await world.charge(5)
    world.redis.error = None
    await world.healed()
    assert await world.redis.look("acme", [RATE]) == (
        (await world.redis.look("acme", [RATE]))[0]._replace(remaining=95),
    )
    assert world.told == ["away", ""]


async def test_what_is_owed_is_charged_at_the_end(world: World) -> None:
    """A server that stops pays if it can; else it says what is lost."""
    world.take_redis_away()
    await world.charge(5)
    world.redis.error = None
    await world.limiter.close()
    assert (await world.redis.look("acme", [RATE]))[0].remaining == 95
    world.take_redis_away()
    await world.charge(7)
    await world.limiter.close()
    assert world.lost == [7]


async def test_an_accounts_last_word_is_that_of_any_of_its_keys(world: World) -> None:
    """What one key was told of the account's limit is known of it."""
    shared = DAILY._replace(limit=replace(DAILY.limit, amount=100), id="acme/shared")
    await world.charge(1, shared, key="k1")
    await world.charge(99, shared, key="k2")
    world.take_redis_away()
    assert not admitted(await world.charge(1, shared, key="k1"))


async def test_admissions_of_an_outage_are_remembered_for_a_minute(world: World) -> None:
    """Not for ever: an outage of hours may not fill the memory."""
    world.take_redis_away()
    open_ = RATE._replace(limit=replace(RATE.limit, when_degraded=WhenDegraded.ALLOW))
    for number in range(1_000):
        world.clock.time += MINUTE // 100
        await world.charge(1, open_, request_id=f"r{number}")
    assert len(world.shares._admitted) <= 101


async def test_a_store_that_answers_and_takes_nothing_renews_no_share(world: World) -> None:
    """As a full Redis: each look finds it there, and what was let through is one share in all, told once."""
    world.redis.full = True
    through = 0
    for _ in range(100):
        through += admitted(await world.charge())
        await asyncio.sleep(0.003)
    assert through == 50
    world.redis.full = False
    await world.healed()
    told = await world.charge(0)
    assert isinstance(told, Charged)
    assert (told.standings[0].remaining, world.told) == (50, ["full", ""])
