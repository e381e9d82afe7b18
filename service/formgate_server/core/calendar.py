"""Calendar periods: days and months begin at the first instant of their first local date, whatever clocks do there."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

from formgate_server.core.model import Period

FOREVER = 2**63 - 1
_SECOND = 1_000_000


class Bounds(NamedTuple):
    """A period and the end of the one after it, in microseconds since the Unix epoch: [start, end), [end, next_end)."""

    start: int
    end: int
    next_end: int


@lru_cache(maxsize=1)
def zone_names() -> frozenset[str]:
    """Return the time zones that there are."""
    return frozenset(available_timezones() - {"localtime"})


_latest: dict[tuple[Period, str], Bounds] = {}  # a check asks for the same period as the one before it


def bounds(period: Period, zone: str, now: int) -> Bounds:
    """Return the period of ``zone`` (an IANA name) that ``now`` lies in. Raises KeyError for an unknown zone."""
    latest = _latest.get((period, zone))
    if latest is not None and latest.start <= now < latest.end:
        return latest
    found = _bounds(period, zone, now)
    _latest[period, zone] = found
    return found


def _bounds(period: Period, zone: str, now: int) -> Bounds:
    today = datetime.fromtimestamp(now // _SECOND, ZoneInfo(zone)).date()
    first = today.replace(day=1) if period is Period.MONTH else today
    edges = [first_instant(zone, first)]
    while len(edges) < 3:  # noqa: PLR2004 - start, end, next end
        first = _after(period, first)
        edge = first_instant(zone, first)
        if edge <= now:  # the clocks went back over midnight: the old date came again, the new one has begun
            edges = [edge]
        elif edge > edges[-1]:  # else a date that its zone skipped
            edges.append(edge)
    return Bounds(*edges)


def _after(period: Period, first: date) -> date:
    if period is Period.DAY:
        return first + timedelta(days=1)
    return (first + timedelta(days=31)).replace(day=1)


@lru_cache(maxsize=4096)
def first_instant(zone: str, day: date) -> int:
    """Return the first instant of ``day`` in ``zone``; of a day that the zone skipped, that of the next."""
    place = ZoneInfo(zone)
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - a local time; its zone comes in the next line
    instant = midnight.replace(tzinfo=place).astimezone(UTC)  # of two midnights the first (PEP 495: fold=0)
    if instant.astimezone(place).replace(tzinfo=None) == midnight:
        return int(instant.timestamp()) * _SECOND
    # No midnight on that day: the clocks were put forward over it. Search the second at which they were.
    before, after = int(instant.timestamp()) - 86_400, int(instant.timestamp()) + 86_400
    while after - before > 1:
        middle = (before + after) // 2
        if datetime.fromtimestamp(middle, place).replace(tzinfo=None) < midnight:
            before = middle
        else:
            after = middle
    return after * _SECOND
