"""The Limiter port: epochs, charges, repetitions, refunds and adjustments, for every backend.

A backend here keeps its marks through the test's own Reservations, which sees every write before it is durable and
after. Some tests look at a limiter at the very moment at which it answers: no other task runs between a backend's
decision and the answer in the caller's hands; Redis decides in the order in which it is asked, and answers in it.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formgate_server.core.errors import UnavailableError
from formgate_server.core.fields import LARGEST
from formgate_server.core.limits import outlives_its_store
from formgate_server.core.ports import Charge, Charged, EpochMissing, EpochMoved
from tests.support.clock import DAY, HOUR, MINUTE, SECOND, TODAY, SettableClock
from tests.support.limiters import (
    DAILY,
    ENDS,
    MINUTELY,
    MONTHLY,
    REMEMBERED,
    WIDE,
    Per,
    World,
    backend,
    begun,
    charge,
    counter,
    histories,
    quiet,
    replace_amount,
    seed,
    used,
    world,
)

__all__ = ["backend", "world"]  # fixtures

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


@pytest.mark.parametrize("per", [MINUTELY, DAILY])
async def test_a_request_with_another_cost_is_another_request(world: World, per: Per) -> None:
    """An id opens no more than what was paid for under it, nor, with the cost of a look, what is used up."""
    limits = (counter(amount=5, per=per),)
    await charge(world.limiter, limits, cost=1, request_id="r1")
    assert (await charge(world.limiter, limits, cost=10**6, request_id="r1")).denied is not None
    await charge(world.limiter, limits, cost=4, request_id="r1")
    assert await used(world.limiter, limits) == [5]
    for cost in (0, 1, 5, LARGEST):
        assert (await charge(world.limiter, limits, cost=cost, request_id="r1")).denied is not None, cost
    assert (await charge(world.limiter, limits, cost=4, request_id="r1")).denied is None
    assert await used(world.limiter, limits) == [5]


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


def test_the_clock_of_these_tests_stands_at_noon_of_a_day() -> None:
    """Tests of limiters count hours to midnight from it."""
    noon = datetime.fromtimestamp(SettableClock().now() // SECOND, UTC)
    assert (noon.hour, noon.minute, noon.day) == (12, 0, 19)
