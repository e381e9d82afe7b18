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
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

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


_Seen: TypeAlias = tuple[int, Standing]
"""When the counters' store said where a counter stands, and what."""


class _Share:
    """A counter of this process alone: ``limit``'s share above ``base``, which others had used already."""

    __slots__ = ("base", "began", "limit", "moment", "state")

    def __init__(self, counter: Counter, state: State, unsure: int, now: int) -> None:
        """Begin with the ``state`` that is known, and the ``unsure`` units that may be in it or not."""
        self.limit = counter.limit
        self.state = add(state, unsure) if unsure else state
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
    """The limits of the accounts whose counters do not answer, each for as long as its outage lasts."""

    def __init__(self, clock: Clock, reservations: Reservations, processes: int) -> None:
        """Divide by ``processes``; what is not known of a counter is read from ``reservations``, if it answers."""
        self._clock = clock
        self._reservations = reservations
        self._processes = processes
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._shares: dict[str, dict[str, _Share]] = {}  # by account and counter
        self._owed: dict[str, dict[tuple[Counter, ...], int]] = {}  # by account
        self._admitted: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()
        # By counter: what was let through by shares and may never have been charged. Nothing is owed for it, so an
        # outage that comes again and again would else begin a new share each time.
        self._unsure: OrderedDict[str, State] = OrderedDict()

    def see(self, charge: Charge, charged: Charged) -> None:
        """Note what the counters' store said of a key's limits."""
        now, seen = self._clock.now(), self._seen
        for counter, standing in zip(charge.counters, charged.standings, strict=False):
            seen[counter.id] = (now, standing)
        while len(seen) > _MOST_SEEN:
            seen.popitem(last=False)

    async def charge(self, charge: Charge, *, maybe_charged: bool) -> Charged:
        """Charge the shares, all or none. ``maybe_charged``: the store may have done so too, so nothing is owed."""
        await self._begin(charge.account_id, charge.counters)
        return self._charge(charge, maybe_charged=maybe_charged)

    def _charge(self, charge: Charge, *, maybe_charged: bool) -> Charged:
        counters, now = charge.counters, self._clock.now()
        if not counters:
            return Charged(None, None, (), degraded=True)
        of_account = self._shares[charge.account_id]
        if self._is_admitted(charge, now):
            return Charged(None, None, self._standings(of_account, counters, now), degraded=True)
        refused = [each.limit for each in counters if each.limit.when_degraded is WhenDegraded.DENY]
        if refused:
            standings = self._standings(of_account, counters, now)
            return Charged(min(refused, key=reason_of), None, standings, degraded=True)
        shared = [each for each in counters if each.limit.when_degraded is WhenDegraded.SHARE]
        shares = [of_account[each.id] for each in shared]
        own = [share.counter(counter, self._processes, now) for share, counter in zip(shares, shared, strict=True)]
        spent = spend(own, [share.state for share in shares], charge.cost, now)
        for share, state in zip(shares, spent.states, strict=True):
            share.state = state
        standings = self._standings(of_account, counters, now)
        if spent.denied is not None:
            denied = next(each.limit for each, mine in zip(shared, own, strict=True) if mine.limit is spent.denied)
            retry = None if spent.retry_time is None else spent.retry_time - now
            return Charged(denied, retry, standings, degraded=True)
        if charge.cost:
            self._note(charge, now, owed=not maybe_charged)
            if maybe_charged:
                self._doubt(shared, charge.cost, now)
        return Charged(None, None, standings, degraded=True)

    def _doubt(self, counters: Iterable[Counter], units: int, now: int) -> None:
        for each in counters:
            self._unsure[each.id] = add(up_to_now(each, self._unsure.pop(each.id, None), now), units)
        while len(self._unsure) > _MOST_SEEN:
            self._unsure.popitem(last=False)

    def _is_admitted(self, charge: Charge, now: int) -> bool:
        while self._admitted and not abs(now - next(iter(self._admitted.values()))[0]) < REMEMBERED:
            self._admitted.popitem(last=False)
        _, cost = self._admitted.get((charge.key_id, charge.request_id), (0, None))
        return cost == charge.cost

    def _note(self, charge: Charge, now: int, *, owed: bool) -> None:
        if owed:
            of_account = self._owed.setdefault(charge.account_id, {})
            of_account[charge.counters] = of_account.get(charge.counters, 0) + charge.cost
        if charge.request_id:
            self._admitted[charge.key_id, charge.request_id] = now, charge.cost

    async def look(self, account_id: str, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """Tell where the shares stand."""
        await self._begin(account_id, counters)
        return self._standings(self._shares.get(account_id, {}), counters, self._clock.now())

    def settle(self, account_id: str) -> list[Owed]:
        """End an account's outage: return what is still to be charged, and forget its shares."""
        owed = self.owed(account_id)
        self._shares.pop(account_id, None)
        return owed

    def owed(self, account_id: str) -> list[Owed]:
        """Return what an account is to be charged; it is owed here no more, and its shares stay as they are.

        What it comes to is known until the counters' store says it: an outage that follows at once goes on from there.
        """
        of_account, now = self._shares.get(account_id, {}), self._clock.now()
        owed = self._owed.pop(account_id, {})
        for counter in {each.id: each for counters in owed for each in counters}.values():
            self._see_share(counter, of_account[counter.id], now)
        return [Owed(account_id, *each) for each in owed.items()]

    def _see_share(self, counter: Counter, share: _Share, now: int) -> None:
        share.counter(counter, self._processes, now)
        amount = counter.limit.amount
        if amount is not None:
            standing = Standing(counter.limit, max(0, amount - share.state.used), _ends(share.state))
            self._seen[counter.id] = (now, standing)

    async def _begin(self, account_id: str, counters: Sequence[Counter]) -> None:
        while missing := [each for each in counters if each.id not in self._shares.get(account_id, {})]:
            durable = [each.id for each in missing if outlives_its_store(each.limit)]
            marks = await self._marks(durable) if durable else {}
            now = self._clock.now()
            of_account = self._shares.setdefault(account_id, {})  # only now: it may have been settled meanwhile
            for each in missing:
                state = up_to_now(each, None, now)
                if each.id in marks:
                    state = restored(each, marks[each.id].state, marks[each.id].ahead, now)
                used = _used(each.limit, self._seen.get(each.id), now)
                if used > state.used:
                    state = add(state, used - state.used)
                unsure = up_to_now(each, self._unsure.get(each.id), now).used
                of_account.setdefault(each.id, _Share(each, state, unsure, now))

    async def _marks(self, counter_ids: Sequence[str]) -> Mapping[str, Reserved]:
        """Return the marks; with the database away too, none: what was seen last is all that is known."""
        load = asyncio.ensure_future(self._reservations.load(counter_ids))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                return await asyncio.shield(load)
        except (UnavailableError, TimeoutError):
            load.add_done_callback(lambda late: late.cancelled() or late.exception())  # seen
            return {}

    def _standings(
        self, of_account: Mapping[str, _Share], counters: Iterable[Counter], now: int
    ) -> tuple[Standing, ...]:
        told = []
        for each in counters:
            share = of_account[each.id]
            amount = share.counter(each, self._processes, now).limit.amount
            left = 0 if amount is None else max(0, amount - share.state.used)
            told.append(Standing(each.limit, left, _ends(share.state)))
        return tuple(told)


def _ends(state: State) -> int | None:
    """Return when a period ends, if anything of it is used."""
    return state.end if isinstance(state, Span) and state.used and state.end != FOREVER else None


def _used(limit: Limit, seen: _Seen | None, now: int) -> int:
    """Return how much of ``limit`` the counters' store said was used, if that still counts."""
    if seen is None or limit.amount is None:
        return 0
    time, standing = seen
    if standing.limit != limit or (isinstance(limit.per, Rolling) and not 0 <= now - time <= limit.per.window):
        return 0
    is_over = standing.reset_time is not None and standing.reset_time <= now
    return 0 if is_over else limit.amount - standing.remaining
