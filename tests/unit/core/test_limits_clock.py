"""Limits under a clock that is wrong: true time runs beside it, and the amounts are held against that."""

from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.limits import Counter, State, spend
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling

SECOND = 1_000_000
HOUR = 3_600 * SECOND
DAY = 24 * HOUR
TODAY = 20_500 * DAY
EXAMPLES = settings().max_examples


@dataclass(frozen=True)
class Move:
    """Time passes, then the clock goes back, then comes a check of ``cost``; both times are to be ``scaled``."""

    gap: int
    back: int
    cost: int


def rolling(amount: int, window: int) -> Counter:
    """Make a rolling limit's counter."""
    return Counter("a/rate", Limit("rate", Holder.ACCOUNT, amount, Rolling(window)), "UTC")


def calendar(amount: int, period: Period) -> Counter:
    """Make the counter of a calendar period of UTC."""
    return Counter("a/quota", Limit("quota", Holder.ACCOUNT, amount, Calendar(period)), "UTC")


def scaled(number: int, unit: int) -> int:
    """Return sixtieths of ``unit``: whole ones, a microsecond more or less, or in between."""
    sixtieth = unit // 60
    beside = (0, 1, -1, 0, sixtieth - 1, 0, sixtieth // 2)
    return max(0, unit * (number // 7) // 60 + beside[number % 7])


# Short gaps, so that much is counted when the clock goes back; and often just beside where something begins or ends.
gaps = st.one_of(
    st.sampled_from((0, 1, 2, 7, 59 * 7, 60 * 7, 60 * 7 + 1, 60 * 7 + 2)),
    st.integers(0, 14 * 7),
    st.integers(0, 130 * 7),
)
steps = st.one_of(st.just(0), st.sampled_from((1, 60 * 7 + 1, 120 * 7 + 1, 180 * 7 + 1)), st.integers(0, 200 * 7))
starts = st.one_of(st.integers(-2, 2), st.integers(0, 10**9))
moves = st.lists(st.builds(Move, gaps, steps, st.integers(0, 3)), max_size=25)
jumps = st.integers(-200, 200)  # sixtieths
windows = st.one_of(st.sampled_from((1, 61, 60 * SECOND, 60 * SECOND + 7)), st.integers(1, 10**7))


def most_within(charges: list[tuple[int, int]], length: int) -> int:
    """Return the most that any closed interval of that length has seen."""
    return max((sum(c for t, c in charges if start <= t <= start + length) for start, _ in charges), default=0)


@settings(max_examples=5 * EXAMPLES)
@given(moves, windows, st.integers(1, 3), starts)
def test_a_clock_that_goes_back_never_frees_a_window(moves: list[Move], window: int, amount: int, start: int) -> None:
    """However often the clock goes back, in true time no interval of the window's length is over its amount."""
    counter = rolling(amount, window)
    state: State | None = None
    charges = []
    time, clock = 0, 10**6 * window + start
    for move in moves:
        time += scaled(move.gap, window)
        clock += scaled(move.gap, window) - scaled(move.back, window)
        spent = spend((counter,), (state,), move.cost, clock)
        state = spent.states[0]
        if spent.denied is None:
            charges.append((time, move.cost))
    assert most_within(charges, window) <= amount


def test_going_back_by_more_than_a_window_does_not_age_what_was_charged() -> None:
    """A clock set back from the beginning of a sub-window to the end of one has not let another one pass."""
    counter = rolling(1, 60 * SECOND)
    spent = spend((counter,), (None,), 1, 1_000 * SECOND - 1)
    spent = spend((counter,), spent.states, 0, 1_000 * SECOND)
    set_back = 900 * SECOND - 1
    for now in (set_back, set_back + 60 * SECOND - 1):  # together 60 seconds
        spent = spend((counter,), spent.states, 1, now)
        assert spent.denied is not None
    assert spend((counter,), spent.states, 1, set_back + 62 * SECOND).denied is None


@settings(max_examples=2 * EXAMPLES)
@given(moves, jumps, moves, windows, st.integers(1, 4))
def test_a_window_heals_once_the_clock_is_right(
    before: list[Move], jump: int, after: list[Move], window: int, amount: int
) -> None:
    """Two windows and a sixtieth after the first check by a right clock, all is as if it had never been wrong.

    Until then it may only deny too much: a charge counts for at most a window too long.
    """
    counter = rolling(amount, window)
    sixtieth = Fraction(window, 60)
    state: State | None = None
    clock = TODAY
    for move in before:
        clock += scaled(move.gap, window) - scaled(move.back, window)
        state = spend((counter,), (state,), move.cost, clock).states[0]
    clock += jump * window // 60
    state = spend((counter,), (state,), 0, clock).states[0]
    healed = clock + ceil(121 * sixtieth)
    charges = []
    for move in after:
        clock += scaled(move.gap, window)
        spent = spend((counter,), (state,), move.cost, clock)
        state = spent.states[0]
        if spent.denied is None:
            charges.append((clock, move.cost))
        elif clock >= healed:
            assert sum(c for t, c in charges if (clock - t) * 60 < 61 * window) + max(1, move.cost) > amount
        else:
            assert spent.retry_time is None or spent.retry_time <= max(healed, clock + ceil(61 * sixtieth))
    assert most_within(charges, window) <= amount
    assert spend((counter,), (state,), amount, max(healed, clock + ceil(61 * sixtieth))).denied is None


SHORTEST = {Period.DAY: DAY, Period.MONTH: 28 * DAY}


@settings(max_examples=5 * EXAMPLES)
@given(moves, st.sampled_from(Period), st.integers(1, 3), starts)
def test_a_clock_that_goes_back_never_brings_two_new_amounts_together(
    moves: list[Move], period: Period, amount: int, start: int
) -> None:
    """In true time less than a period admits what it could by a right clock: an amount before midnight, one after."""
    counter = calendar(amount, period)
    state: State | None = None
    charges = []
    time, clock = 0, TODAY + start
    unit = SHORTEST[period]
    for move in moves:
        time += scaled(move.gap, unit)
        clock += scaled(move.gap, unit) - scaled(move.back, unit)
        spent = spend((counter,), (state,), move.cost, clock)
        state = spent.states[0]
        if spent.denied is None:
            charges.append((time, move.cost))
    assert most_within(charges, SHORTEST[period] - 1) <= 2 * amount


@pytest.mark.parametrize("days_back", [0, 1, 2, 3, 40, 400])
def test_a_day_s_quota_is_not_renewed_by_going_back_to_before_midnight(days_back: int) -> None:
    """Spent before midnight and after it, then set back to a minute before one: nothing comes for a day."""
    counter = calendar(5, Period.DAY)
    spent = spend((counter,), (None,), 5, TODAY - 1)
    spent = spend((counter,), spent.states, 5, TODAY)
    assert spent.denied is None
    clock = TODAY - days_back * DAY - 60 * SECOND
    for after in (0, 60 * SECOND, 2 * HOUR, DAY - 1):
        spent = spend((counter,), spent.states, 1, clock + after)
        assert spent.denied is not None


def number_of(period: Period, clock: int) -> int:
    """Number the periods of UTC."""
    date = datetime.fromtimestamp(clock // SECOND, UTC).date()
    return date.toordinal() if period is Period.DAY else date.year * 12 + date.month


@settings(max_examples=2 * EXAMPLES)
@given(moves, jumps, moves, st.sampled_from(Period), st.integers(1, 3))
def test_a_quota_heals_with_the_next_period(
    before: list[Move], jump: int, after: list[Move], period: Period, amount: int
) -> None:
    """With the period after the next, counted from the first check by a right clock, all is as if never wrong."""
    counter = calendar(amount, period)
    state: State | None = None
    clock, unit = TODAY, SHORTEST[period]
    for move in before:
        clock += scaled(move.gap, unit) - scaled(move.back, unit)
        state = spend((counter,), (state,), move.cost, clock).states[0]
    clock += jump * unit // 60
    healed = number_of(period, clock) + 2
    state = spend((counter,), (state,), 0, clock).states[0]
    admitted: dict[int, int] = {}
    for move in after:
        clock += scaled(move.gap, unit)
        spent = spend((counter,), (state,), move.cost, clock)
        state = spent.states[0]
        number = number_of(period, clock)
        used = admitted.get(number, 0)
        if spent.denied is None:
            admitted[number] = used + move.cost
            assert used + max(1, move.cost) <= amount
        elif number >= healed:
            assert used + max(1, move.cost) > amount


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 4 * 10**15), st.integers(0, 4 * 10**15))
def test_credits_know_no_clock(first: int, second: int, before: int, after: int) -> None:
    """What was spent of a lifetime's amount stays spent whatever the clock says."""
    counter = Counter("a/credits", Limit("credits", Holder.ACCOUNT, 5, Lifetime()), "UTC")
    spent = spend((counter,), (None,), first, before)
    spent = spend((counter,), spent.states, second, after)
    assert (spent.denied is None) == (first + max(1, second) <= 5)
    assert spent.states[0].used == first + (second if spent.denied is None else 0)
