"""Limits in memory, exact: as the service counts them, but for the sub-windows by which it frees a window in steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

from formgate.rules.reason import Reason
from formgate.verdict import Holder, LimitStatus


@dataclass(frozen=True, slots=True)
class FakeLimit:
    """At most ``amount`` units (None: unlimited) in any ``window``, or a ``calendar`` period (UTC), else for ever."""

    name: str
    amount: int | None
    window: timedelta | None = None
    calendar: Literal["day", "month"] | None = None
    holder: Holder = Holder.KEY

    def __post_init__(self) -> None:
        """Raises ValueError for what is no limit."""
        if self.window is not None and (self.calendar is not None or self.window <= timedelta()):
            raise ValueError("a window longer than nothing, or a calendar period: one of them")

    @property
    def reason(self) -> Reason:
        """Why a check is denied that it has nothing left for."""
        if self.window is not None:
            return Reason.RATE_LIMITED
        return Reason.QUOTA_EXCEEDED if self.calendar is not None else Reason.CREDITS_EXHAUSTED


@dataclass(slots=True)
class Counter:
    """What was charged to a limit, and when."""

    limit: FakeLimit
    _charges: list[tuple[float, int]] = field(default_factory=list)
    """(until when it counts, units)"""

    def used(self, now: float) -> int:
        """Return the units that count now."""
        self._charges = [(until, units) for until, units in self._charges if now < until]
        return sum(units for _, units in self._charges)

    def fits(self, units: int, now: float) -> bool:
        """Tell whether so many units are left."""
        return self.limit.amount is None or self.used(now) + units <= self.limit.amount

    def fits_at(self, units: int, now: float) -> float | None:
        """Return when so many will be left if nothing else is charged; None: never."""
        amount = self.limit.amount
        if amount is None:
            return now
        if units > amount:
            return None
        over = self.used(now) + units - amount
        for until, freed in sorted(self._charges):
            if over <= 0:
                break
            now, over = until, over - freed
        return None if now == float("inf") else now

    def charge(self, units: int, now: float) -> None:
        """Charge."""
        if units and self.limit.amount is not None:
            self._charges.append((self._until(now), units))

    def standing(self, now: float) -> LimitStatus:
        """Tell where it stands."""
        limit, used = self.limit, self.used(now)
        last = max((until for until, _ in self._charges), default=float("inf"))
        return LimitStatus(
            name=limit.name,
            holder=limit.holder,
            amount=limit.amount,
            remaining=0 if limit.amount is None else max(0, limit.amount - used),
            reset_time=None if last == float("inf") else datetime.fromtimestamp(last, UTC),
            unlimited=limit.amount is None,
            window=limit.window,
        )

    def _until(self, now: float) -> float:
        limit = self.limit
        if limit.window is not None:
            return now + limit.window.total_seconds()
        if limit.calendar is None:
            return float("inf")
        day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        if limit.calendar == "day":
            return (day + timedelta(days=1)).timestamp()
        return (day.replace(day=1) + timedelta(days=32)).replace(day=1).timestamp()


class Spent(NamedTuple):
    """What came of a charge: ``denied`` None: it fitted everywhere."""

    denied: Reason | None
    retry_after: timedelta | None
    standings: tuple[LimitStatus, ...]


def spend(counters: list[Counter], cost: int, now: float) -> Spent:
    """Charge ``cost`` to all counters, or to none; with 0 nothing is charged, and a limit with nothing left denies."""
    wanted = cost or 1
    full = [counter for counter in counters if not counter.fits(wanted, now)]
    if not full:
        for counter in counters:
            counter.charge(cost, now)
        return Spent(None, None, tuple(counter.standing(now) for counter in counters))
    times = [counter.fits_at(wanted, now) for counter in full]
    known = [time for time in times if time is not None]
    after = timedelta(seconds=max(known) - now) if len(known) == len(times) else None
    reason = min(counter.limit.reason for counter in full)
    return Spent(reason, after, tuple(counter.standing(now) for counter in counters))
