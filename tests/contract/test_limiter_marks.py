"""The Limiter port: the marks that let counters outlive their store, for every backend.

Exempt, ``redis`` and ``redis-cluster``: what a close writes, for it writes nothing. The counters stay where they are,
and other processes go on counting there.
"""

from __future__ import annotations

import asyncio

import pytest

from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import Lifetime, Rolling
from tests.support.clock import DAY, MINUTE
from tests.support.limiters import (
    DAILY,
    ENDS,
    Marks,
    Per,
    World,
    backend,
    begun,
    charge,
    counter,
    quiet,
    replace_amount,
    seed,
    used,
    world,
    writes_at_the_end,
)

__all__ = ["backend", "world"]  # fixtures


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
