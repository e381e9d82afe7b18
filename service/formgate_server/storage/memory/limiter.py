"""The counters and epochs of one process, in memory: the embedded default's limiter, and the oracle of the others.

Each charge is one step of the event loop, and so atomic. A counter that must outlive this process runs only up to a
mark that the database already holds (docs/adr/0005). The mark is raised in the background before it is reached; a
charge waits only where it has been reached.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from formgate_server.core.errors import UnavailableError
from formgate_server.core.limits import (
    Counter,
    Span,
    Standing,
    State,
    add,
    block,
    give_back,
    lend,
    moment,
    outlives_its_store,
    restored,
    spend,
    standing,
    up_to_now,
)
from formgate_server.core.ports import (
    Charge,
    Charged,
    ChargeResult,
    Clock,
    EpochMissing,
    EpochMoved,
    LeaseCharge,
    Leased,
    LeaseResult,
    LeasesOut,
    Reservations,
    Reserved,
)
from formgate_server.storage.mark_writer import MarkWriter

REMEMBERED = 60 * 1_000_000
"""How long an admission's request_id is remembered, in microseconds."""

ADJUSTED = 60 * 60 * 1_000_000
"""How long the name of an adjustment is remembered, in microseconds."""

LEASE_REMEMBERED = 10 * 60 * 1_000_000
"""How long a lease is remembered, to be settled, in microseconds."""

SHORTEST_LEASE = 1_000
"""A lease is not granted for less, in microseconds: it would be over before it was told."""

_RETRY_LEASE = 1_000_000
_MARKS_A_WRITE = 5_000


class _Cell:
    """A counter: its state, and how far the database knows of it."""

    __slots__ = ("ahead", "block", "counter", "marked", "spent", "state")

    def __init__(self, counter: Counter, state: State | None) -> None:
        self.state = state
        self.count_by(counter)
        self.spent = 0  # units charged since this process began
        self.ahead = 0  # units that may be charged before the mark is reached; negative: the database was away
        self.marked = 0  # the calendar period that the mark is of, by its end

    def count_by(self, counter: Counter) -> None:
        """Take the limit as it is now: its amount may have changed."""
        limit = counter.limit
        self.counter = counter
        # By how much the mark is raised at a time. 0: the counter has none.
        self.block = block(limit) if limit.amount is not None and outlives_its_store(limit) else 0

    def headroom(self, state: State) -> int:
        """Return how many units may be charged to ``state``, the cell's own up to now, under its mark."""
        return self.ahead if self.marked == _period(state) else 0


def _period(state: State) -> int:
    """Return what tells a counter's period from the next: marks of a rolling window go on for ever."""
    return state.end if isinstance(state, Span) else 0


def _remembered(time: int, now: int) -> bool:
    """Tell whether what was admitted at ``time`` is still known; a clock set back further than that forgets it."""
    return abs(now - time) < REMEMBERED


def _charged(cells: Sequence[_Cell]) -> tuple[tuple[_Cell, int], ...]:
    """Return which of the cells were charged just now, each with the moment that ``give_back`` must know."""
    return tuple(
        (cell, moment(cell.state)) for cell in cells if cell.state is not None and cell.counter.limit.amount is not None
    )


class _Admission(NamedTuple):
    """A remembered admission: when, what it cost, and which counters it charged at which of their moments."""

    time: int
    cost: int
    charged: tuple[tuple[_Cell, int], ...]


class MemoryLimiter:
    """The Limiter and Leases ports in one process."""

    def __init__(
        self,
        clock: Clock,
        reservations: Reservations,
        *,
        on_degraded: Callable[[bool], None] = lambda _: None,
        retry_seconds: float = 1.0,
        patience_seconds: float = 2.0,
    ) -> None:
        """Count by ``clock``.

        ``on_degraded`` is told when the database stops, and begins again, to take marks; it is tried every
        ``retry_seconds``. A write that takes longer than ``patience_seconds`` is waited for by no check.
        """
        self._clock = clock
        self._reservations = reservations
        self._writer: MarkWriter[_Cell] = MarkWriter(
            self._write, on_degraded, retry_seconds=retry_seconds, patience_seconds=patience_seconds
        )
        self._epochs: dict[str, int] = {}
        self._incarnations: dict[str, int] = {}
        self._last_incarnation = 0
        self._cells: dict[str, _Cell] = {}
        self._admissions: dict[tuple[str, str], _Admission] = {}
        self._admitted: deque[tuple[int, tuple[str, str]]] = deque()
        self._adjusted: OrderedDict[tuple[str, str], int] = (
            OrderedDict()
        )  # the names of adjustments, each with its time
        self._began = clock.now()
        self._leases: OrderedDict[tuple[str, str], _Admission] = OrderedDict()
        self._leased_until: dict[str, int] = {}
        self._new: set[str] = set()  # accounts that were made after this process began

    async def charge(self, charge: Charge) -> ChargeResult:
        """See ``Limiter.charge``."""
        while True:
            result = self._charge_at_once(charge)
            if result is not None:
                return result
            if all(counter.id in self._cells for counter in charge.counters):
                await self._writer.written.wait()
            else:
                await self._load(charge.counters)

    async def charge_many(self, charges: Sequence[Charge]) -> Sequence[ChargeResult | UnavailableError]:
        """See ``Limiter.charge_many``."""
        results = [self._charge_at_once(charge) for charge in charges]
        waiting = [charge for charge, result in zip(charges, results, strict=True) if result is None]
        waited = iter(await asyncio.gather(*map(self._charge_or_tell, waiting)))
        return [next(waited) if result is None else result for result in results]

    async def _charge_or_tell(self, charge: Charge) -> ChargeResult | UnavailableError:
        try:
            return await self.charge(charge)
        except UnavailableError as error:
            return error

    def _charge_at_once(self, charge: Charge) -> ChargeResult | None:
        """Charge; None: counters are not loaded yet, or a mark must be raised first, which is under way."""
        moved = self._compare(charge)
        if moved is not None:
            return moved
        if not charge.counters:
            return Charged(None, None, (), self._writer.degraded)
        try:
            cells = [self._cells[counter.id] for counter in charge.counters]
        except KeyError:
            return None
        return self._spend(charge, cells)

    def _compare(self, charge: Charge) -> EpochMoved | EpochMissing | None:
        account_id = charge.account_id
        epoch = self._epochs.get(account_id)
        if epoch is None:
            return EpochMissing(self._incarnations.get(account_id) or self._new_incarnation(account_id))
        if epoch > charge.epoch:
            return EpochMoved(epoch)
        if epoch < charge.epoch:
            self._epochs[account_id] = charge.epoch
        return None

    def _new_incarnation(self, account_id: str) -> int:
        self._last_incarnation += 1
        self._incarnations[account_id] = self._last_incarnation
        return self._last_incarnation

    async def publish(self, account_id: str, epoch: int) -> None:
        """See ``Limiter.publish``."""
        known = self._epochs.get(account_id)
        if known is None:
            self._new_incarnation(account_id)
        else:
            self._epochs[account_id] = max(known, epoch)

    async def seed(self, account_id: str, epoch: int, incarnation: int) -> None:
        """See ``Limiter.seed``."""
        if account_id not in self._epochs and self._incarnations.get(account_id) == incarnation:
            self._epochs[account_id] = epoch
            del self._incarnations[account_id]

    def _spend(self, charge: Charge, cells: Sequence[_Cell]) -> Charged | None:
        """Charge, or see to it that a mark is raised and return None."""
        now = self._clock.now()
        request = (charge.key_id, charge.request_id) if charge.request_id else None
        if request is not None and request in self._admissions:
            admission = self._admissions[request]
            if admission.cost == charge.cost and _remembered(admission.time, now):
                return self._told(charge.counters, cells, now)
        spent = spend(charge.counters, [cell.state for cell in cells], charge.cost, now)
        if (
            spent.denied is None
            and charge.cost
            and not self._covered(charge.counters, cells, spent.states, charge.cost)
        ):
            return None
        for cell, state in zip(cells, spent.states, strict=True):
            cell.state = state
        if spent.denied is None and charge.cost:
            self._note(cells, charge.cost)
            if request is not None:
                self._remember(request, charge.cost, cells, now)
        standings = tuple(map(standing, charge.counters, spent.states))
        retry = None if spent.retry_time is None else spent.retry_time - now
        return Charged(spent.denied, retry, standings, self._writer.degraded)

    def _told(self, counters: Sequence[Counter], cells: Sequence[_Cell], now: int) -> Charged:
        """Tell where the counters stand."""
        states = [up_to_now(counter, cell.state, now) for counter, cell in zip(counters, cells, strict=True)]
        return Charged(None, None, tuple(map(standing, counters, states)), self._writer.degraded)

    def _remember(self, request: tuple[str, str], cost: int, cells: Sequence[_Cell], now: int) -> None:
        while self._admitted and not _remembered(self._admitted[0][0], now):
            time, old = self._admitted.popleft()
            admission = self._admissions.get(old)
            if admission is not None and admission.time == time:  # else refunded, or admitted again since
                del self._admissions[old]
        self._admissions[request] = _Admission(now, cost, _charged(cells))
        self._admitted.append((now, request))

    async def look(self, account_id: str, counters: Sequence[Counter]) -> tuple[Standing, ...]:  # noqa: ARG002 - a counter's id is enough here
        """See ``Limiter.look``."""
        await self._load(counters)
        return self._told(counters, [self._cells[counter.id] for counter in counters], self._clock.now()).standings

    async def adjust(self, account_id: str, counters: Sequence[Counter], units: int, *, once: str) -> None:
        """See ``Limiter.adjust``."""
        counters = [counter for counter in counters if counter.limit.amount is not None]
        await self._load(counters)
        cells = [self._cells[counter.id] for counter in counters]
        while True:
            now = self._clock.now()
            states = [up_to_now(counter, cell.state, now) for counter, cell in zip(counters, cells, strict=True)]
            if (account_id, once) in self._adjusted:
                return
            if self._covered(counters, cells, states, units):
                break
            await self._writer.written.wait()
        self._adjusted[account_id, once] = now
        while abs(now - next(iter(self._adjusted.values()))) > ADJUSTED:
            self._adjusted.popitem(last=False)
        for cell, state in zip(cells, states, strict=True):
            cell.state = add(state, units)
        self._note(cells, units)

    async def refund(self, account_id: str, key_id: str, request_id: str) -> None:  # noqa: ARG002 - a key's id is enough here
        """See ``Limiter.refund``. A refunded admission is forgotten: repeated, it is charged again."""
        admission = self._admissions.pop((key_id, request_id), None)
        now = self._clock.now()
        if admission is None or not _remembered(admission.time, now):
            return
        self._give_back(admission.charged, admission.cost, now)

    def _give_back(self, charged: Sequence[tuple[_Cell, int]], units: int, now: int) -> None:
        for cell, charged_at in charged:
            cell.state = give_back(up_to_now(cell.counter, cell.state, now), units, charged_at)
            if cell.block:
                self._writer.want(cell, 0)  # a mark that stays above what was given back would cost it after all

    async def lease(self, wanted: LeaseCharge) -> LeaseResult:
        """See ``Leases.lease``."""
        counters = wanted.counters
        await self._load(counters)
        cells = [self._cells[counter.id] for counter in counters]
        charge = Charge(wanted.account_id, wanted.epoch, "")
        while True:
            moved = self._compare(charge)
            if moved is not None:
                return moved
            if self._writer.degraded:
                return Leased(0, _RETRY_LEASE, degraded=True)
            now = self._clock.now()
            name = wanted.account_id, wanted.lease_id
            lent = lend(counters, [cell.state for cell in cells], wanted.units, wanted.duration, now)
            if not lent.units or lent.duration < SHORTEST_LEASE or name in self._leases:
                return Leased(0, max(lent.duration, SHORTEST_LEASE))
            if self._covered(counters, cells, lent.states, 1):
                break
            await self._writer.written.wait()
        rooms = [cell.headroom(state) for cell, state in zip(cells, lent.states, strict=True) if cell.block]
        units = min([lent.units, *rooms])
        for counter, cell, state in zip(counters, cells, lent.states, strict=True):
            cell.state = state if counter.limit.amount is None else add(state, units)
        self._note(cells, units)
        self._remember_lease(name, units, cells, now, lent.duration)
        return Leased(units, lent.duration, self._told(counters, cells, now).standings)

    def _remember_lease(
        self, name: tuple[str, str], units: int, cells: Sequence[_Cell], now: int, duration: int
    ) -> None:
        while self._leases and abs(now - next(iter(self._leases.values())).time) > LEASE_REMEMBERED:
            self._leases.popitem(last=False)
        if charged := _charged(cells):  # else there is nothing to give back
            self._leases[name] = _Admission(now, units, charged)
        account_id = name[0]
        self._leased_until[account_id] = max(self._leased_until.get(account_id, 0), now + duration)

    async def settle(self, account_id: str, lease_id: str, unused: int) -> int:
        """See ``Leases.settle``."""
        lease = self._leases.pop((account_id, lease_id), None)
        now = self._clock.now()
        if lease is None or abs(now - lease.time) > LEASE_REMEMBERED:
            return 0
        units = min(unused, lease.cost)
        self._give_back(lease.charged, units, now)
        return units

    async def out(self, account_id: str) -> LeasesOut:
        """See ``Leases.out``."""
        now = self._clock.now()
        left = max(0, self._leased_until.get(account_id, 0) - now)
        return LeasesOut(left, None if account_id in self._new else max(0, now - self._began))

    async def none_out(self, account_id: str) -> None:
        """See ``Leases.none_out``."""
        if self._clock.now() - self._began < LEASE_REMEMBERED:  # later than that nothing of before is out
            self._new.add(account_id)

    async def _load(self, counters: Sequence[Counter]) -> None:
        """See to it that there are cells, those that outlived an earlier process as the database has them."""
        missing = [counter for counter in counters if counter.id not in self._cells]
        durable = [counter.id for counter in missing if outlives_its_store(counter.limit)]
        marks = await self._reservations.load(durable) if durable else {}
        now = self._clock.now()
        for counter in missing:
            mark = marks.get(counter.id)
            state = None if mark is None else restored(counter, mark.state, mark.ahead, now)
            self._cells.setdefault(counter.id, _Cell(counter, state))  # somebody else may have loaded it meanwhile

    def _covered(
        self, counters: Sequence[Counter], cells: Sequence[_Cell], states: Sequence[State], units: int
    ) -> bool:
        """Tell whether ``units`` stay under the marks of all cells; where they do not, these are raised."""
        covered = True
        for counter, cell, state in zip(counters, cells, states, strict=True):
            known = cell.counter
            if known.limit is not counter.limit or known.zone != counter.zone:
                cell.count_by(counter)
            if cell.block and cell.headroom(state) < units:
                covered = False
        if not covered:
            for cell in cells:  # those that are high enough must stay so until the others are
                if cell.block:
                    self._writer.want(cell, units)
        return covered or self._writer.degraded

    def _note(self, cells: Sequence[_Cell], units: int) -> None:
        """Count charged units against the marks, and raise in time those that are half used up."""
        for cell in cells:
            if not cell.block or cell.state is None:
                continue
            cell.spent += units
            cell.ahead -= units
            if cell.ahead < cell.block // 2 and cell.ahead < (cell.counter.limit.amount or 0) - cell.state.used:
                self._writer.want(cell, 0)

    async def _write(self, wanted: dict[_Cell, int]) -> None:
        now = self._clock.now()
        marks = {}
        taken = []
        for cell, units in wanted.items():
            state = up_to_now(cell.counter, cell.state, now)
            left = max(0, (cell.counter.limit.amount or 0) - state.used)
            ahead = max(units, min(cell.block, left))
            cell.ahead = min(cell.ahead, ahead)  # what is charged meanwhile must fit under both marks
            marks[cell.counter.id] = Reserved(state, ahead)
            taken.append((cell, cell.spent, ahead, _period(state)))
        await self._reservations.save(marks)
        for cell, spent, ahead, period in taken:
            cell.ahead = ahead - (cell.spent - spent)
            cell.marked = period
            if ahead > cell.block:
                self._writer.want(cell, 0)  # made to measure; used or not, it may not stay so high

    async def close(self) -> None:
        """Write every counter as it stands, so that a restart costs nothing. Raises UnavailableError."""
        await self._writer.stop()
        now = self._clock.now()
        exact = {
            cell.counter.id: Reserved(up_to_now(cell.counter, cell.state, now), 0)
            for cell in self._cells.values()
            if cell.spent or cell.ahead
        }
        ids = list(exact)
        for first in range(0, len(ids), _MARKS_A_WRITE):
            await self._reservations.save({id_: exact[id_] for id_ in ids[first : first + _MARKS_A_WRITE]})
