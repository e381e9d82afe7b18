"""Limits while the counters' store is away: each process lets through its share of what was left, and notes it.

What was left is known from the marks in the database, and from what the store said last; it is divided by the number
of processes, and rounded up. Verdicts by shares say so (``degraded``), and are exempt from being exact
(docs/guarantees.md).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from formgate_server.core.calendar import FOREVER
from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import (
    Counter,
    Span,
    Standing,
    State,
    add,
    moment,
    outlives_its_store,
    reason_of,
    restored,
    spend,
    up_to_now,
)
from formgate_server.core.model import Limit, Rolling, WhenDegraded
from formgate_server.core.ports import Charge, Charged

if TYPE_CHECKING:
    from formgate_server.core.ports import Clock, Reservations, Reserved

REMEMBERED = 60 * 1_000_000
_MOST_SEEN = 100_000
_PATIENCE_SECONDS = 1.0


class Owed(NamedTuple):
    """What was let through by shares, to be charged once the counters' store is back."""

    account_id: str
    counters: tuple[Counter, ...]
    units: int


class _Seen(NamedTuple):
    time: int
    standings: tuple[Standing, ...]


class _Share:
    """A counter of this process alone: ``limit``'s share above ``base``, which others had used already."""

    __slots__ = ("base", "began", "limit", "moment", "state")

    def __init__(self, counter: Counter, state: State, now: int) -> None:
        self.limit = counter.limit
        self.state = state
        self.base = state.used
        self.began = now
        self.moment = moment(state)

    def counter(self, counter: Counter, processes: int, now: int) -> Counter:
        """Return the counter with this process' share of its amount, ``state`` brought up to now."""
        self.limit = counter.limit
        self.state = up_to_now(counter, self.state, now)
        per = counter.limit.per
        if isinstance(self.state, Span):
            over = self.state.end != self.moment
        else:
            over = isinstance(per, Rolling) and not 0 <= now - self.began <= per.window * 61 // 60
        if over:  # what others had used no longer counts; nor is anything known of what they use now
            self.base, self.began, self.moment = 0, now, moment(self.state)
        amount = counter.limit.amount
        if amount is None:
            return counter
        share = self.base + -(-max(0, amount - self.base) // processes)
        return counter._replace(limit=replace(counter.limit, amount=share))


class Shares:
    """The limits of one outage."""

    def __init__(self, clock: Clock, reservations: Reservations, processes: int) -> None:
        """Divide by ``processes``; what is not known of a counter is read from ``reservations``, if it answers."""
        self._clock = clock
        self._reservations = reservations
        self._processes = processes
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._shares: dict[str, _Share] = {}
        self._admitted: dict[tuple[str, str], int] = {}
        self._owed: dict[tuple[str, tuple[Counter, ...]], int] = {}

    def see(self, key_id: str, charged: Charged) -> None:
        """Note what the counters' store said of a key's limits."""
        self._seen[key_id] = _Seen(self._clock.now(), charged.standings)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)

    async def charge(self, charge: Charge, *, maybe_charged: bool) -> Charged:
        """Charge the shares, all or none. ``maybe_charged``: the store may have done so too, so nothing is owed."""
        counters = charge.counters
        if not counters:
            return Charged(None, None, (), degraded=True)
        await self._begin(charge)
        now = self._clock.now()
        if charge.request_id and now - self._admitted.get((charge.key_id, charge.request_id), -REMEMBERED) < REMEMBERED:
            return Charged(None, None, self._standings(counters, now), degraded=True)
        refused = [each.limit for each in counters if each.limit.when_degraded is WhenDegraded.DENY]
        if refused:
            return Charged(min(refused, key=reason_of), None, self._standings(counters, now), degraded=True)
        shared = [each for each in counters if each.limit.when_degraded is WhenDegraded.SHARE]
        shares = [self._shares[each.id] for each in shared]
        own = [share.counter(counter, self._processes, now) for share, counter in zip(shares, shared, strict=True)]
        spent = spend(own, [share.state for share in shares], charge.cost, now)
        for share, state in zip(shares, spent.states, strict=True):
            share.state = state
        standings = self._standings(counters, now)
        if spent.denied is not None:
            denied = next(each.limit for each, mine in zip(shared, own, strict=True) if mine.limit is spent.denied)
            retry = None if spent.retry_time is None else spent.retry_time - now
            return Charged(denied, retry, standings, degraded=True)
        if charge.cost and not maybe_charged:
            owed = (charge.account_id, counters)
            self._owed[owed] = self._owed.get(owed, 0) + charge.cost
        if charge.cost and charge.request_id:
            self._admitted[charge.key_id, charge.request_id] = now
        return Charged(None, None, standings, degraded=True)

    async def look(self, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """Tell where the shares stand."""
        await self._begin(Charge("", 0, "", tuple(counters)))
        return self._standings(counters, self._clock.now())

    def settle(self) -> list[Owed]:
        """End the outage: return what is to be charged, and forget the shares."""
        owed = [Owed(*of, units) for of, units in self._owed.items()]
        self._shares, self._admitted, self._owed = {}, {}, {}
        return owed

    async def _begin(self, charge: Charge) -> None:
        missing = [each for each in charge.counters if each.id not in self._shares]
        if not missing:
            return
        durable = [each.id for each in missing if outlives_its_store(each.limit)]
        marks = await self._marks(durable) if durable else {}
        now = self._clock.now()
        seen = self._seen.get(charge.key_id)
        for each in missing:
            state = up_to_now(each, None, now)
            if each.id in marks:
                state = restored(each, marks[each.id].state, marks[each.id].ahead, now)
            used = _used(each.limit, seen, now)
            if used > state.used:
                state = add(state, used - state.used)
            self._shares.setdefault(each.id, _Share(each, state, now))

    async def _marks(self, counter_ids: Sequence[str]) -> Mapping[str, Reserved]:
        """Return the marks; with the database away too, none: what was seen last is all that is known."""
        load = asyncio.ensure_future(self._reservations.load(counter_ids))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(load)
        except (UnavailableError, TimeoutError):
            load.add_done_callback(lambda late: late.cancelled() or late.exception())  # seen
            return {}

    def _standings(self, counters: Iterable[Counter], now: int) -> tuple[Standing, ...]:
        told = []
        for each in counters:
            share = self._shares[each.id]
            amount = share.counter(each, self._processes, now).limit.amount
            left = 0 if amount is None else max(0, amount - share.state.used)
            ends = share.state.end if isinstance(share.state, Span) and share.state.used else None
            told.append(Standing(each.limit, left, None if ends == FOREVER else ends))
        return tuple(told)


def _used(limit: Limit, seen: _Seen | None, now: int) -> int:
    """Return how much of ``limit`` the counters' store said was used, if that still counts."""
    if seen is None or limit.amount is None:
        return 0
    if isinstance(limit.per, Rolling) and not 0 <= now - seen.time <= limit.per.window:
        return 0
    for standing in seen.standings:
        if standing.limit == limit and not (standing.reset_time is not None and standing.reset_time <= now):
            return limit.amount - standing.remaining
    return 0
