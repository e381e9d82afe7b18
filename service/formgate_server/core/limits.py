"""Limits, exact: what each counter holds, whether a cost fits, and when it will.

Pure; every limiter is tested against it.

A rolling window is kept in 60 sub-windows and the one that is filling: whatever *may* lie within the last ``window``
counts, so that no interval of that length, wherever it starts, admits more than ``amount``. The price is that a charge
counts for up to window/60 too long, and that evenly spaced checks at up to 29/30 of the limit, each up to window/60
late, always fit: they see at most (61 + 1)/60 of a window, and 62/60 * 29/30 < 1.

A clock that goes back frees nothing: nothing ever seems older than it is. Back by up to a window, a counter waits for
it; by more, its contents move along, so that nothing counts for more than a window too long. A calendar period that
ends further ahead than any lasts is made to end with the next one: going back never brings two new amounts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from formgate.rules.reason import Reason
from formgate_server.core.calendar import FOREVER, bounds
from formgate_server.core.model import Calendar, Lifetime, Limit, Period, Rolling

SUB_WINDOWS = 60
_EMPTY = (0,) * SUB_WINDOWS

_HOUR = 60 * 60 * 1_000_000
LONGEST_PERIOD = {Period.DAY: 36 * _HOUR, Period.MONTH: 32 * 24 * _HOUR}
"""No day or month of any zone is longer, in microseconds."""

LONGEST_FORGOTTEN = 5 * 60 * 1_000_000
"""Rolling windows up to this length, in microseconds, may start empty when the counters' store is lost."""


class Counter(NamedTuple):
    """A limit as one key or account is charged by it: ``id`` names the counter, ``zone`` is the calendar's (IANA)."""

    id: str
    limit: Limit
    zone: str


class Window(NamedTuple):
    """A rolling window's state.

    ``newest``: the units in sub-window ``head``, which is filling; ``ring``: those of the 60 before it, by number
    modulo 60; ``used``: the sum of all. A charge touches two numbers, and the ring only where a sub-window is full.
    """

    head: int
    newest: int
    used: int
    ring: tuple[int, ...]


class Span(NamedTuple):
    """A calendar period's state, or a lifetime's (``end`` FOREVER): units charged before ``end``."""

    end: int
    used: int


State: TypeAlias = Window | Span


class Standing(NamedTuple):
    """Where a limit stands. ``reset_time``: when all of it is there again; None: nothing is charged, or never."""

    limit: Limit
    remaining: int
    reset_time: int | None


class Lent(NamedTuple):
    """What may be leased: ``units`` (0: too little is left) for ``duration`` microseconds, under these ``states``."""

    units: int
    duration: int
    states: Sequence[State]
    """The counters brought up to now; nothing is charged yet."""


class Spent(NamedTuple):
    """The result of a charge: all counters charged (``denied`` None), or none."""

    denied: Limit | None
    retry_time: int | None
    """When this cost fits if nothing else is charged; None: not denied, or never."""
    states: Sequence[State]
    """The counters afterwards, brought up to now."""


def reason_of(limit: Limit) -> Reason:
    """Return the reason by which a check is denied when ``limit`` is used up."""
    if isinstance(limit.per, Rolling):
        return Reason.RATE_LIMITED
    return Reason.QUOTA_EXCEEDED if isinstance(limit.per, Calendar) else Reason.CREDITS_EXHAUSTED


def outlives_its_store(limit: Limit) -> bool:
    """Tell whether losing the counters' store may not refill ``limit``: it is reserved ahead in the database then."""
    return not isinstance(limit.per, Rolling) or limit.per.window > LONGEST_FORGOTTEN


def block(limit: Limit) -> int:
    """Return by how many units ``limit`` is reserved ahead: 1 % of it, at least 10."""
    return max(10, (limit.amount or 0) // 100)


def up_to_now(counter: Counter, state: State | None, now: int) -> State:
    """Return ``state`` (None: never charged) as it stands at ``now``: what can no longer count is dropped."""
    per = counter.limit.per
    if isinstance(per, Rolling):
        number = now * SUB_WINDOWS // per.window
        return _roll(state, number) if isinstance(state, Window) else Window(number, 0, 0, _EMPTY)
    if isinstance(per, Lifetime):
        return state if isinstance(state, Span) else Span(FOREVER, 0)
    if isinstance(state, Span) and now < state.end <= now + LONGEST_PERIOD[per.period]:
        return state
    window = bounds(per.period, counter.zone, now)
    if isinstance(state, Span) and now < state.end:
        return Span(window.next_end, state.used)  # the clock was set back; this period's end could be a moment away
    return Span(window.end, 0)


def _roll(state: Window, number: int) -> Window:
    """Bring a window to the sub-window ``number``."""
    head, newest, used, ring = state
    ahead = number - head
    if -SUB_WINDOWS <= ahead <= 0:
        return state
    if ahead < 0:
        # A sub-window ahead: the clock may stand later in this one than it stood in the one that it left.
        turn = (ahead + 1) % SUB_WINDOWS
        return Window(number + 1, newest, used, ring[-turn:] + ring[:-turn])
    if ahead > SUB_WINDOWS or not used:
        return Window(number, 0, 0, _EMPTY)
    slots = list(ring)
    for passed in range(head, number):  # its slot is that of the sub-window which leaves for it
        used -= slots[passed % SUB_WINDOWS]
        slots[passed % SUB_WINDOWS] = newest
        newest = 0
    return Window(number, 0, used, tuple(slots))


def _units(state: Window, number: int) -> int:
    """Return the units in the sub-window ``number``, one that counts."""
    return state.newest if number == state.head else state.ring[number % SUB_WINDOWS]


def add(state: State, units: int) -> State:
    """Return ``state``, up to now, with ``units`` charged."""
    if isinstance(state, Span):
        return Span(state.end, state.used + units)
    return Window(state.head, state.newest + units, state.used + units, state.ring)


def moment(state: State) -> int:
    """Return what ``give_back`` must know of the moment at which ``state`` was charged: its sub-window or period."""
    return state.end if isinstance(state, Span) else state.head


def give_back(state: State, units: int, charged_at: int) -> State:
    """Return ``state``, up to now, without ``units`` that were charged at that ``moment``, if they still count."""
    if isinstance(state, Span):
        return Span(state.end, max(0, state.used - units)) if state.end == charged_at else state
    head, newest, used, ring = state
    if not head - SUB_WINDOWS <= charged_at <= head:
        return state
    back = min(units, _units(state, charged_at))
    if charged_at == head:
        return Window(head, newest - back, used - back, ring)
    slots = list(ring)
    slots[charged_at % SUB_WINDOWS] -= back
    return Window(head, newest, used - back, tuple(slots))


def restored(counter: Counter, state: State, ahead: int, now: int) -> State:
    """Return a counter by its mark: as it stood, and all that may have been charged since counts as charged."""
    if isinstance(state, Span):
        return up_to_now(counter, add(state, ahead), now)
    return add(up_to_now(counter, state, now), ahead)  # when in the window it was charged is not known: now


def fits_at(counter: Counter, state: State, units: int) -> int | None:
    """Return when ``units``, which do not fit now, fit into ``state`` if nothing else is charged; None: never."""
    limit = counter.limit
    if limit.amount is None or units > limit.amount:
        return None
    if isinstance(state, Span):
        return state.end if state.end != FOREVER else None
    must_leave = state.used + units - limit.amount
    for number in range(state.head - SUB_WINDOWS, state.head + 1):
        must_leave -= _units(state, number)
        if must_leave <= 0:
            return leaves_at(limit, number)
    return None


def leaves_at(limit: Limit, number: int) -> int:
    """Return when the sub-window ``number`` no longer counts."""
    assert isinstance(limit.per, Rolling)  # noqa: S101 - for the type checker: a Window is a rolling limit's
    return -(-(number + SUB_WINDOWS + 1) * limit.per.window // SUB_WINDOWS)


def standing(counter: Counter, state: State) -> Standing:
    """Tell where the limit stands, ``state`` being up to now."""
    limit = counter.limit
    amount, used = limit.amount, state.used
    if amount is None:
        return Standing(limit, 0, None)
    remaining = amount - used if used < amount else 0
    if not used:
        return Standing(limit, remaining, None)
    if isinstance(state, Span):
        return Standing(limit, remaining, state.end if state.end != FOREVER else None)
    newest = state.head
    while not _units(state, newest):
        newest -= 1
    return Standing(limit, remaining, leaves_at(limit, newest))


def spend(counters: Sequence[Counter], states: Sequence[State | None], cost: int, now: int) -> Spent:
    """Charge ``cost`` to all counters, or to none.

    With cost 0 nothing is charged, and a limit with nothing left denies.
    """
    wanted = cost or 1
    current: list[State] = []
    charged: list[State] = []
    full = []
    for counter, earlier in zip(counters, states, strict=True):
        state = up_to_now(counter, earlier, now)
        current.append(state)
        amount = counter.limit.amount
        if amount is not None and state.used + wanted > amount:
            full.append((counter, state))
        else:
            charged.append(add(state, cost) if cost and amount is not None else state)
    if not full:
        return Spent(None, None, charged)
    first = min((counter.limit for counter, _ in full), key=reason_of)
    times = [fits_at(counter, state, wanted) for counter, state in full]
    retry = None if None in times else max(time for time in times if time is not None)
    return Spent(first, retry, current)


def lend(counters: Sequence[Counter], states: Sequence[State | None], wanted: int, longest: int, now: int) -> Lent:
    """Tell how many of the ``wanted`` units may be leased, and for how long: at most ``longest`` microseconds.

    What is charged now may be used until the lease ends. It counts for the whole window after that because a lease ends
    with the sub-window in which it is charged, or earlier; and with a calendar period. Half of what is left is left to
    others: the last units of a limit are asked for one by one.
    """
    units, end = wanted, now + longest
    current: list[State] = []
    for counter, earlier in zip(counters, states, strict=True):
        state = up_to_now(counter, earlier, now)
        current.append(state)
        limit = counter.limit
        if limit.amount is None:
            continue
        units = min(units, (limit.amount - state.used) // 2)
        if isinstance(state, Window):
            assert isinstance(limit.per, Rolling)  # noqa: S101 - for the type checker: a Window is a rolling limit's
            end = min(end, (state.head + 1) * limit.per.window // SUB_WINDOWS)
        elif state.end != FOREVER:
            end = min(end, state.end)
    return Lent(max(0, units), max(0, end - now), current)
