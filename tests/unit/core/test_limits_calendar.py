"""Quotas of calendar periods, and credits; tests/unit/core/test_calendar.py proves when a period begins."""

from collections import defaultdict
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.calendar import FOREVER, bounds
from formgate_server.core.limits import Counter, State, add, give_back, moment, spend, standing, up_to_now
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
EXAMPLES = settings().max_examples

ZONES = ("America/New_York", "America/Sao_Paulo", "America/St_Johns", "Europe/Vienna", "Pacific/Apia", "Asia/Kathmandu")
BEGINNINGS = tuple(
    int(datetime.fromisoformat(f"{text}T00:00+00:00").timestamp()) * SECOND
    for text in ("2008-10-30", "2011-12-27", "2018-02-15", "2024-02-26", "2026-03-06", "2026-10-23")
)


def quota(amount: int, period: Period, zone: str) -> Counter:
    """Make the counter of a calendar period."""
    return Counter("a/quota", Limit("quota", Holder.ACCOUNT, amount, Calendar(period)), zone)


gaps = st.one_of(st.integers(0, 3), st.integers(0, 50).map(lambda n: n * HOUR // 2), st.integers(0, 40 * DAY))
moves = st.lists(st.tuples(gaps, st.integers(0, 5)), max_size=30)


@settings(max_examples=2 * EXAMPLES)
@given(st.sampled_from(Period), st.sampled_from(ZONES), st.integers(0, 9), st.sampled_from(BEGINNINGS), moves)
def test_a_period_admits_its_amount_and_denies_what_is_over_it(
    period: Period, zone: str, amount: int, now: int, moves: list[tuple[int, int]]
) -> None:
    """What fits into what a period has left is admitted, and nothing else, on days of any length."""
    counter = quota(amount, period, zone)
    state: State | None = None
    used: dict[int, int] = defaultdict(int)
    for gap, cost in moves:
        now += gap
        this = bounds(period, zone, now)
        spent = spend((counter,), (state,), cost, now)
        state = spent.states[0]
        assert (spent.denied is None) == (used[this.start] + max(1, cost) <= amount)
        if spent.denied is None:
            used[this.start] += cost
        else:
            assert spent.retry_time == (this.end if max(1, cost) <= amount else None)
        told = standing(counter, state)
        assert told.remaining == amount - used[this.start]
        assert told.reset_time == (this.end if used[this.start] else None)


@settings(max_examples=2 * EXAMPLES)
@given(
    st.sampled_from(Period),
    st.integers(0, 9),
    st.sampled_from(BEGINNINGS),
    st.lists(st.tuples(gaps, st.integers(0, 5), st.sampled_from(ZONES)), max_size=30),
)
def test_a_changed_time_zone_counts_from_the_next_period(
    period: Period, amount: int, now: int, moves: list[tuple[int, int, str]]
) -> None:
    """A period that has begun ends when it would have ended: only then is the zone of that moment asked."""
    state: State | None = None
    end = used = 0
    for gap, cost, zone in moves:
        now += gap
        if now >= end:
            end, used = bounds(period, zone, now).end, 0
        spent = spend((quota(amount, period, zone),), (state,), cost, now)
        state = spent.states[0]
        assert (spent.denied is None) == (used + max(1, cost) <= amount)
        if spent.denied is None:
            used += cost
        elif max(1, cost) <= amount:
            assert spent.retry_time == end


def test_a_changed_amount_counts_at_once() -> None:
    """What was used stays used under another amount."""
    counter = quota(10, Period.DAY, "UTC")
    now = BEGINNINGS[-1]
    states = spend((counter,), (None,), 10, now).states
    larger, smaller = (counter._replace(limit=replace(counter.limit, amount=amount)) for amount in (12, 5))
    assert spend((larger,), states, 2, now).denied is None
    assert spend((larger,), states, 3, now).denied is larger.limit
    assert spend((smaller,), states, 1, now).denied is smaller.limit
    assert standing(smaller, up_to_now(smaller, states[0], now)).remaining == 0


@given(st.sampled_from(Period), st.sampled_from(ZONES), st.sampled_from(BEGINNINGS), st.integers(1, 9), gaps)
def test_a_refund_belongs_to_the_period_that_was_charged(
    period: Period, zone: str, now: int, units: int, gap: int
) -> None:
    """Given back within the period, units are there again; later, nothing is taken from what others have used."""
    counter = quota(10, period, zone)
    charged = spend((counter,), (None,), units, now).states[0]
    later = now + gap
    state = add(up_to_now(counter, charged, later), 3)
    after = give_back(state, units, moment(charged))
    same = bounds(period, zone, now) == bounds(period, zone, later)
    assert state.used == (units + 3 if same else 3)
    assert after.used == 3
    assert up_to_now(counter, after, later) == after


@given(st.lists(st.tuples(gaps, st.integers(0, 9), st.booleans()), max_size=20), st.integers(0, 40))
def test_credits_are_for_ever(moves: list[tuple[int, int, bool]], amount: int) -> None:
    """A lifetime's amount is spent once, comes back only by refunds, and none is told to wait for more."""
    counter = Counter("a/credits", Limit("credits", Holder.ACCOUNT, amount, Lifetime()), "UTC")
    state: State | None = None
    now, used = BEGINNINGS[0], 0
    for gap, cost, refunded in moves:
        now += gap
        spent = spend((counter,), (state,), cost, now)
        state = spent.states[0]
        assert (spent.denied is None) == (used + max(1, cost) <= amount)
        assert spent.retry_time is None
        assert moment(state) == FOREVER
        if spent.denied is None and refunded:
            state = give_back(state, cost, moment(state))
        elif spent.denied is None:
            used += cost
        told = standing(counter, state)
        assert (told.remaining, told.reset_time) == (amount - used, None)


@pytest.mark.parametrize("period", Period)
def test_a_refund_never_gives_more_than_was_charged(period: Period) -> None:
    """A counter does not fall below nothing used."""
    state = spend((quota(5, period, "UTC"),), (None,), 2, BEGINNINGS[0]).states[0]
    assert give_back(state, 3, moment(state)).used == 0
