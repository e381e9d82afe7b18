"""Several limits charged at once, and when a denied check is told to come back."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate.rules.reason import Reason
from formgate_server.core.limits import Counter, Spent, State, reason_of, spend, standing, up_to_now
from formgate_server.core.model import Calendar, Holder, Lifetime, Limit, Period, Rolling

SECOND = 1_000_000
DAY = 86_400 * SECOND
YEAR = 366 * DAY
TODAY = 20_500 * DAY
LARGEST = 2**63 - 1
EXAMPLES = settings().max_examples

ZONES = ("UTC", "America/New_York", "Europe/Vienna", "Asia/Kathmandu", "Pacific/Kiritimati", "America/St_Johns")

pers = st.one_of(
    st.builds(Rolling, st.sampled_from((SECOND, 60 * SECOND, 59_999_981, DAY, 30 * DAY))),
    st.builds(Calendar, st.sampled_from(Period)),
    st.just(Lifetime()),
)
limits = st.builds(Limit, st.just("limit"), st.sampled_from(Holder), st.sampled_from((None, 0, 1, 2, 3, 5, 8)), pers)
counters = st.lists(st.builds(Counter, st.just("a/limit"), limits, st.sampled_from(ZONES)), max_size=5).map(tuple)
gaps = st.one_of(
    st.just(0),
    st.integers(0, 3 * SECOND),
    st.integers(0, 3 * 60 * SECOND),
    st.sampled_from((SECOND // 60, 60 * SECOND, 61 * SECOND, DAY - 1, DAY)),
    st.integers(0, 60 * DAY),
)


@dataclass(frozen=True)
class History:
    """Counters charged some, and a check that comes then."""

    counters: tuple[Counter, ...]
    states: tuple[State | None, ...]
    cost: int
    now: int

    def spend(self) -> Spent:
        """Decide the check."""
        return spend(self.counters, self.states, self.cost, self.now)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Draw what charges of each counter and of all of them have left."""
    charged = draw(counters)
    states: list[State | None] = [None] * len(charged)
    now = TODAY + draw(st.integers(0, YEAR))
    for gap, cost, which in draw(st.lists(st.tuples(gaps, st.integers(1, 5), st.integers(0, 5)), max_size=12)):
        now += gap
        if which < len(charged):
            states[which] = spend(charged[which : which + 1], states[which : which + 1], cost, now).states[0]
        else:
            states = [*spend(charged, states, cost, now).states]
    return History(charged, tuple(states), draw(st.integers(0, 5)), now + draw(gaps))


def brought_up(counters: Sequence[Counter], states: Sequence[State | None], now: int) -> tuple[State, ...]:
    """Return where the counters stand at ``now``."""
    return tuple(up_to_now(counter, state, now) for counter, state in zip(counters, states, strict=True))


def alone(history: History) -> list[Spent]:
    """Decide the check by each limit alone."""
    return [
        spend((counter,), (state,), history.cost, history.now)
        for counter, state in zip(history.counters, history.states, strict=True)
    ]


@settings(max_examples=4 * EXAMPLES)
@given(histories())
def test_all_are_charged_or_none(history: History) -> None:
    """A check is admitted when every limit admits it, and then charges every one; denied, it charges none."""
    spent = history.spend()
    each = alone(history)
    assert (spent.denied is None) == all(one.denied is None for one in each)
    if spent.denied is None:
        assert tuple(spent.states) == tuple(one.states[0] for one in each)
        before = brought_up(history.counters, history.states, history.now)
        for counter, old, new in zip(history.counters, before, spent.states, strict=True):
            assert new.used - old.used == (0 if counter.limit.amount is None else history.cost)
    else:
        assert tuple(spent.states) == brought_up(history.counters, history.states, history.now)


@settings(max_examples=4 * EXAMPLES)
@given(histories())
def test_the_first_reason_that_applies_is_told(history: History) -> None:
    """Of the limits that deny, a rolling one is named before a calendar's, that before credits; else the first."""
    denied = history.spend().denied
    each = [one.denied for one in alone(history) if one.denied is not None]
    for kind in (Rolling, Calendar, Lifetime):
        of_kind = [limit for limit in each if isinstance(limit.per, kind)]
        if of_kind:
            assert denied is of_kind[0]
            return
    assert denied is None


@pytest.mark.parametrize("order", list(permutations((Rolling(SECOND), Calendar(Period.DAY), Lifetime()))))
def test_of_all_kinds_the_rolling_limit_is_told(order: tuple[Rolling | Calendar | Lifetime, ...]) -> None:
    """RATE_LIMITED, QUOTA_EXCEEDED, CREDITS_EXHAUSTED: in whatever order the limits are given."""
    full = [Counter("a/l", Limit("l", Holder.KEY, 0, per), "UTC") for per in order]
    for kind in (Rolling, Calendar, Lifetime):
        denied = spend(full, [None] * len(full), 1, TODAY).denied
        assert denied is not None
        assert isinstance(denied.per, kind)
        full = [counter for counter in full if counter.limit is not denied]


@settings(max_examples=8 * EXAMPLES)
@given(histories())
def test_retry_time_is_when_it_really_fits(history: History) -> None:
    """A denied check fits at the time told and not a microsecond before it; without one it never does."""
    spent = history.spend()
    if spent.denied is None:
        assert spent.retry_time is None
    elif spent.retry_time is None:
        for later in (1, SECOND, 31 * DAY, YEAR, 100 * YEAR):
            assert spend(history.counters, spent.states, history.cost, history.now + later).denied is not None
    else:
        assert spent.retry_time > history.now
        assert spend(history.counters, spent.states, history.cost, spent.retry_time - 1).denied is not None
        assert spend(history.counters, spent.states, history.cost, spent.retry_time).denied is None
        # What has been brought up to now decides as what has not.
        assert spend(history.counters, history.states, history.cost, spent.retry_time - 1).denied is not None
        assert spend(history.counters, history.states, history.cost, spent.retry_time).denied is None


@given(histories())
def test_it_never_fits_exactly_where_it_is_over_an_amount_or_credits_are_short(history: History) -> None:
    """One is told to come back unless a limit that denies is smaller than the cost, or is one of a lifetime."""
    spent = history.spend()
    hopeless = any(
        isinstance(limit.per, Lifetime) or (limit.amount is not None and max(1, history.cost) > limit.amount)
        for limit in (one.denied for one in alone(history))
        if limit is not None
    )
    assert (spent.retry_time is None) == (spent.denied is None or hopeless)


@given(histories())
def test_cost_0_looks_without_charging(history: History) -> None:
    """A look is denied exactly where a limit has nothing left, and leaves everything as it stands."""
    spent = spend(history.counters, history.states, 0, history.now)
    before = brought_up(history.counters, history.states, history.now)
    assert tuple(spent.states) == before
    left = [
        standing(counter, state).remaining
        for counter, state in zip(history.counters, before, strict=True)
        if counter.limit.amount is not None
    ]
    assert (spent.denied is None) == all(left)


@given(histories())
def test_where_a_limit_stands_is_what_it_admits(history: History) -> None:
    """What remains fits and not a unit more; at reset_time the whole amount does, and not a microsecond before."""
    for counter, earlier in zip(history.counters, history.states, strict=True):
        state = up_to_now(counter, earlier, history.now)
        told = standing(counter, state)
        amount = counter.limit.amount
        assert told.limit is counter.limit
        if amount is None:
            assert (told.remaining, told.reset_time) == (0, None)
            continue
        if told.remaining:
            assert spend((counter,), (state,), told.remaining, history.now).denied is None
        assert spend((counter,), (state,), told.remaining + 1, history.now).denied is counter.limit
        if told.reset_time is not None:
            assert told.reset_time > history.now
            assert spend((counter,), (state,), amount, told.reset_time).denied is None
            assert spend((counter,), (state,), amount, told.reset_time - 1).denied is not None
        else:
            assert isinstance(counter.limit.per, Lifetime) or told.remaining == amount


@given(histories(), st.integers(0, LARGEST))
def test_what_is_unlimited_admits_everything_and_counts_nothing(history: History, cost: int) -> None:
    """Without amounts no cost is denied, and the counters stay empty."""
    unlimited = tuple(
        counter._replace(limit=Limit("l", Holder.KEY, None, counter.limit.per)) for counter in history.counters
    )
    spent = spend(unlimited, [None] * len(unlimited), cost, history.now)
    assert (spent.denied, spent.retry_time) == (None, None)
    assert all(state.used == 0 for state in spent.states)


@pytest.mark.parametrize("per", [Rolling(60 * SECOND), Calendar(Period.DAY), Calendar(Period.MONTH), Lifetime()])
@pytest.mark.parametrize("amount", [0, 1, 2, LARGEST])
def test_an_amount_is_spent_to_the_unit(per: Rolling | Calendar | Lifetime, amount: int) -> None:
    """All of any amount can be spent at once, not one unit more, and a cost above it never fits."""
    counter = Counter("a/l", Limit("l", Holder.KEY, amount, per), "UTC")
    over = spend((counter,), (None,), amount + 1, TODAY)
    assert (over.denied, over.retry_time) == (counter.limit, None)
    if amount:
        spent = spend((counter,), (None,), amount, TODAY)
        assert spent.denied is None
        assert standing(counter, spent.states[0]).remaining == 0
        assert spend((counter,), spent.states, 1, TODAY).denied is counter.limit


@pytest.mark.parametrize(
    ("per", "reason"),
    [
        (Rolling(60 * SECOND), Reason.RATE_LIMITED),
        (Calendar(Period.DAY), Reason.QUOTA_EXCEEDED),
        (Calendar(Period.MONTH), Reason.QUOTA_EXCEEDED),
        (Lifetime(), Reason.CREDITS_EXHAUSTED),
    ],
)
def test_each_kind_of_limit_has_its_reason(per: Rolling | Calendar | Lifetime, reason: Reason) -> None:
    """Rolling limits rate, calendars hold quotas, lifetimes credits."""
    assert reason_of(Limit("l", Holder.KEY, 1, per)) is reason


def test_a_check_without_limits_is_admitted() -> None:
    """No limit denies nothing."""
    spent = spend((), (), LARGEST, TODAY)
    assert (spent.denied, spent.retry_time, tuple(spent.states)) == (None, None, ())
