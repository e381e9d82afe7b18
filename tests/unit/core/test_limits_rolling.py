"""Rolling windows, against the list of everything that was admitted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.limits import (
    LONGEST_FORGOTTEN,
    Counter,
    State,
    add,
    block,
    give_back,
    moment,
    outlives_its_store,
    spend,
    standing,
    up_to_now,
)
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling

LARGEST = 2**63 - 1
SECOND = 1_000_000
TODAY = 1_795_000_000 * SECOND
EXAMPLES = settings().max_examples


def rolling(amount: int | None, window: int) -> Counter:
    """Make a rolling limit's counter."""
    return Counter("a/rate", Limit("rate", Holder.ACCOUNT, amount, Rolling(window)), "UTC")


class Admitted:
    """Everything that was admitted. It knows nothing of sub-windows."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.charges: list[tuple[int, int]] = []

    def must_count(self, now: int) -> int:
        """Return what lies in the window's length up to now, both ends included."""
        return sum(units for time, units in self.charges if now - time <= self.window)

    def may_count(self, now: int) -> int:
        """Return what lies in the window's length and a sixtieth."""
        return sum(units for time, units in self.charges if (now - time) * 60 < self.window * 61)

    def most_in_any_interval(self) -> int:
        """Return the most that any closed interval of the window's length has seen: one begins at its first charge."""
        return max(
            (
                sum(units for time, units in self.charges if start <= time <= start + self.window)
                for start, _ in self.charges
            ),
            default=0,
        )

    def fits_at(self, now: int, units: int, amount: int) -> int:
        """Return when ``units`` fit at last, if a charge counted for exactly the window's length."""
        return min(
            time
            for time in (now, *(charged + self.window + 1 for charged, _ in self.charges))
            if time >= now and self.must_count(time) + units <= amount
        )


@dataclass(frozen=True)
class Move:
    """A check ``cost`` after ``gap``, or before it the counters' store is lost."""

    gap: int
    cost: int
    lost: bool


@dataclass(frozen=True)
class History:
    """A counter, and what happens to it from ``start`` on."""

    counter: Counter
    window: int
    amount: int
    start: int
    moves: list[Move]


windows = st.one_of(
    st.sampled_from((1, 2, 59, 60, 61, 1_000, 1_000_003, 60 * SECOND, LONGEST_FORGOTTEN, LONGEST_FORGOTTEN + 1)),
    st.integers(1, 10**7),
    st.integers(1, 366 * 86_400 * SECOND),
)
starts = st.one_of(st.just(0), st.just(TODAY), st.integers(0, 4 * 10**15))


def gaps(window: int) -> st.SearchStrategy[int]:
    """Draw a time that passes: sixtieths of the window, where things begin and cease to count, more or less, or any."""
    sixtieth = window // 60
    beside = (0, 1, -1, sixtieth - 1, sixtieth // 2, sixtieth // 3, sixtieth // 7)
    return st.one_of(
        st.sampled_from((0, window, window + 1, window * 61 // 60)),
        st.integers(0, 130 * len(beside)).map(
            lambda number: max(0, window * (number // len(beside)) // 60 + beside[number % len(beside)])
        ),
        st.integers(0, 2 * window),
    )


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw a history; costs go up to about half the amount, so that some fit and some do not."""
    window = draw(windows)
    unit = draw(st.sampled_from((1, 1, 7, LARGEST // 20)))
    amount = draw(st.integers(0, 20)) * unit
    moves = st.builds(
        Move, gaps(window), st.integers(0, 8).map(lambda cost: cost * unit), st.integers(0, 19).map(lambda n: n == 0)
    )
    return History(rolling(amount, window), window, amount, draw(starts), draw(st.lists(moves, max_size=40)))


@settings(max_examples=4 * EXAMPLES)
@given(histories())
def test_no_interval_of_the_window_s_length_is_over_its_amount(history: History) -> None:
    """Whatever the costs, gaps, windows and clocks, no interval, closed at both ends, admits more than the amount.

    The price is bounded too: what is denied would not fit beside the charges of the last window and a sixtieth. Losing
    the store frees only windows of at most 5 minutes.
    """
    counter, amount = history.counter, history.amount
    admitted = Admitted(history.window)
    now, state = history.start, None
    for move in history.moves:
        now += move.gap
        if move.lost and not outlives_its_store(counter.limit):
            assert history.window <= 5 * 60 * SECOND
            state, admitted = None, Admitted(history.window)
        spent = spend((counter,), (state,), move.cost, now)
        state = spent.states[0]
        if spent.denied is None:
            admitted.charges.append((now, move.cost))
        else:
            assert admitted.may_count(now) + max(1, move.cost) > amount
        told = standing(counter, state)
        assert max(0, amount - admitted.may_count(now)) <= told.remaining <= amount - admitted.must_count(now)
    assert admitted.most_in_any_interval() <= amount


@given(histories())
def test_one_waits_at_most_a_sixtieth_too_long(history: History) -> None:
    """The time told after a denial is never too early, and at most window/60 after a charge could have ceased."""
    counter, amount = history.counter, history.amount
    admitted = Admitted(history.window)
    now, state = history.start, None
    for move in history.moves:
        now += move.gap
        spent = spend((counter,), (state,), move.cost, now)
        state = spent.states[0]
        if spent.denied is None:
            admitted.charges.append((now, move.cost))
        elif max(1, move.cost) > amount:
            assert spent.retry_time is None
        else:
            assert spent.retry_time is not None
            assert spent.retry_time > now
            exactly = admitted.fits_at(now, max(1, move.cost), amount)
            assert exactly <= spent.retry_time < exactly + ceil(Fraction(history.window, 60))


@given(windows, starts, st.integers(1, 100))
def test_after_a_burst_all_of_it_is_back_within_a_window_and_a_sixtieth(window: int, start: int, amount: int) -> None:
    """All spent at one moment, one waits for more than the window, and at most window/60 longer."""
    counter = rolling(amount, window)
    burst = spend((counter,), (None,), amount, start)
    assert burst.denied is None
    denied = spend((counter,), burst.states, 1, start)
    assert denied.retry_time is not None
    assert start + window < denied.retry_time <= start + window + ceil(Fraction(window, 60))
    assert spend((counter,), denied.states, amount, denied.retry_time).denied is None


# Even pacing: lateness is in thousandths of window/60.
Lateness = Callable[[int], int]


def paced(amount: int, window: int, start: Fraction, spacing: Fraction, late: Lateness, checks: int) -> list[int]:
    """Return the times, in order, of ``checks`` that are due ``spacing`` apart, each as late as ``late`` says."""
    times = []
    for number in range(checks):
        due = start + number * spacing
        earliest, latest = ceil(due), floor(due + Fraction(window, 60))
        times.append(earliest + (latest - earliest) * late(number) // 1_000)
    return sorted(times)


def denials(counter: Counter, times: list[int]) -> int:
    """Check at these times, and count how many are denied."""
    denied = 0
    states: Sequence[State | None] = (None,)
    for time in times:
        spent = spend((counter,), states, 1, time)
        denied += spent.denied is not None
        states = spent.states
    return denied


@st.composite
def latenesses(draw: st.DrawFn, checks: int) -> Lateness:
    """Draw who is late: all as late as can be up to some check and none after it (the worst for a counter), or any."""
    turn = draw(st.integers(0, checks))
    before, after = draw(st.sampled_from(((1_000, 0), (0, 1_000), (1_000, 1_000), (0, 0))))
    pattern = draw(st.none() | st.lists(st.integers(0, 1_000), min_size=1, max_size=9))
    if pattern is None:
        return lambda number: before if number < turn else after
    return lambda number: pattern[number % len(pattern)]


@settings(max_examples=2 * EXAMPLES)
@given(
    st.data(),
    st.integers(1, 60),
    st.one_of(
        st.integers(60, 7_919), st.sampled_from((SECOND, 60 * SECOND, 86_400 * SECOND + 1)), st.integers(60, 10**9)
    ),
    starts,
    st.fractions(0, 1, max_denominator=60),
    st.one_of(st.just(Fraction(30, 29)), st.fractions(Fraction(30, 29), 2, max_denominator=10_000)),
)
def test_even_pacing_is_never_denied(
    data: st.DataObject, amount: int, window: int, start: int, fraction: Fraction, slowness: Fraction
) -> None:
    """Checks of cost 1 evenly spaced at 29/30 of the limit or below, each 0 to window/60 late, always fit."""
    checks = 2 * amount + 10
    late = data.draw(latenesses(checks))
    begins = start + fraction * Fraction(window, 60)
    times = paced(amount, window, begins, slowness * Fraction(window, amount), late, checks)
    assert denials(rolling(amount, window), times) == 0


@pytest.mark.parametrize("amount", [1, 2, 29, 30, 31, 59, 60, 61, 1_000, 10_000, 100_000])
@pytest.mark.parametrize("window", [60 * SECOND, 59_999_981])
def test_even_pacing_is_never_denied_up_to_100_000(amount: int, window: int) -> None:
    """The same at any size: at the full 29/30, all late until the half, all on time afterwards."""
    times = paced(
        amount,
        window,
        Fraction(TODAY),
        Fraction(30 * window, 29 * amount),
        lambda number: 1_000 if number < amount // 2 else 0,
        amount + amount // 10 + 10,
    )
    assert denials(rolling(amount, window), times) == 0


@given(windows, starts, st.integers(1, 10), st.data())
def test_amount_0_admits_nothing_and_never_will(window: int, start: int, cost: int, data: st.DataObject) -> None:
    """Nothing fits into nothing, not even a look; and one is not told to come back."""
    counter = rolling(0, window)
    for asked in (0, cost, LARGEST):
        spent = spend((counter,), (None,), asked, start)
        assert (spent.denied, spent.retry_time) == (counter.limit, None)
    assert standing(counter, up_to_now(counter, None, start)).remaining == 0


def test_the_largest_amount_is_exact_to_the_unit() -> None:
    """2**63 - 1 units can be spent, in one charge or two, and not one more."""
    counter = rolling(LARGEST, 60 * SECOND)
    spent = spend((counter,), (None,), LARGEST - 1, TODAY)
    spent = spend((counter,), spent.states, 1, TODAY + 1)
    assert spent.denied is None
    assert standing(counter, spent.states[0]).remaining == 0
    assert spend((counter,), spent.states, 1, TODAY + 2).denied is counter.limit
    assert spend((counter,), spent.states, 0, TODAY + 2).denied is counter.limit


@given(histories(), st.integers(0, 130), st.integers(-1, 1))
def test_all_of_it_is_there_at_the_time_told(history: History, sixtieths: int, off: int) -> None:
    """At a limit's reset_time its whole amount fits, one microsecond before it does not; without one, it fits now."""
    counter, amount = history.counter, history.amount
    now, state = history.start, up_to_now(history.counter, None, history.start)
    for move in history.moves:
        now += move.gap
        state = spend((counter,), (state,), move.cost, now).states[0]
    now = max(now, now + history.window * sixtieths // 60 + off)
    state = up_to_now(counter, state, now)
    told = standing(counter, state)
    if amount == 0:
        assert told.reset_time is None
    elif told.reset_time is None:
        assert spend((counter,), (state,), amount, now).denied is None
    else:
        assert told.reset_time > now
        assert spend((counter,), (state,), amount, told.reset_time).denied is None
        assert spend((counter,), (state,), amount, told.reset_time - 1).denied is not None


@settings(max_examples=2 * EXAMPLES)
@given(histories(), st.data())
def test_a_refund_gives_back_its_own_charge_and_no_other(history: History, data: st.DataObject) -> None:
    """With charges given back at any later time, no interval admits more than the amount of what was not given back.

    A charge that no longer counts gives back nothing: what it held has been given to others since.
    """
    counter, amount = history.counter, history.amount
    admitted = Admitted(history.window)
    moments: list[int] = []
    now, state = history.start, up_to_now(history.counter, None, history.start)
    for move in history.moves:
        now += move.gap
        which = data.draw(st.integers(-len(moments) - 1, len(moments) - 1))
        if which >= 0:
            time, units = admitted.charges[which]
            before = up_to_now(counter, state, now)
            state = give_back(before, units, moments[which])
            still = now - time <= history.window
            assert (before.used - state.used == units) if still else (before.used - state.used in (0, units))
            admitted.charges[which] = (time, 0)
        spent = spend((counter,), (state,), move.cost, now)
        state = spent.states[0]
        if spent.denied is None:
            admitted.charges.append((now, move.cost))
            moments.append(moment(state))
        assert admitted.must_count(now) <= state.used <= admitted.may_count(now)
    assert admitted.most_in_any_interval() <= amount


@pytest.mark.parametrize("later", [1, 30, 59, 60, 61, 62, 119, 120, 121, 122, 123, 181, 182, 183])
def test_a_refund_comes_too_late_when_the_charge_counts_no_more(later: int) -> None:
    """Given back up to 60 sub-windows later, a charge makes room; afterwards it takes none from a charge since."""
    counter = rolling(2, 60 * SECOND)
    first = spend((counter,), (None,), 1, TODAY).states[0]
    second = spend((counter,), (first,), 1, TODAY + later * SECOND).states[0]
    state = give_back(second, 1, moment(first))
    assert standing(counter, state).remaining == 1
    assert give_back(state, 1, moment(second)).used == 0


@given(windows, starts, st.integers(0, 100), st.integers(0, LARGEST))
def test_a_charge_afterwards_may_overdraw(window: int, start: int, amount: int, units: int) -> None:
    """What was used already is counted in full, beyond the amount if need be, and never told as below 0 remaining."""
    counter = rolling(amount, window)
    state = add(up_to_now(counter, None, start), units)
    assert state.used == units
    assert standing(counter, state).remaining == max(0, amount - units)
    spent = spend((counter,), (state,), 1, start)
    assert (spent.denied is None) == (units + 1 <= amount)
    if spent.denied is not None and amount:
        assert spent.retry_time is not None
        assert spend((counter,), (state,), 1, spent.retry_time).denied is None
        assert spend((counter,), (state,), 1, spent.retry_time - 1).denied is not None


@pytest.mark.parametrize(
    ("per", "outlives"),
    [
        (Rolling(300 * SECOND), False),
        (Rolling(300 * SECOND + 1), True),
        (Calendar(Period.DAY), True),
        (Calendar(Period.MONTH), True),
        (Lifetime(), True),
    ],
)
def test_only_short_rolling_windows_may_start_empty(per: Rolling | Calendar | Lifetime, *, outlives: bool) -> None:
    """What outlives the loss of its store: all but rolling windows of at most 5 minutes."""
    assert outlives_its_store(Limit("l", Holder.KEY, 1, per)) is outlives


@pytest.mark.parametrize(
    ("amount", "units"), [(0, 10), (1_000, 10), (1_099, 10), (1_100, 11), (LARGEST, LARGEST // 100)]
)
def test_what_a_lost_store_may_cost_is_a_hundredth_or_10(amount: int, units: int) -> None:
    """A limit is reserved ahead by 1 % of its amount, and by 10 units at least."""
    assert block(Limit("l", Holder.KEY, amount, Lifetime())) == units
