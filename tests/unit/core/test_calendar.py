"""Calendar periods, against clocks watched minute by minute."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core import calendar
from formgate_server.core.calendar import Bounds, bounds, first_instant, zone_names
from formgate_server.core.model import Period

SECOND = 1_000_000
HOUR = 3_600 * SECOND
EXAMPLES = settings().max_examples

# Zones whose clocks do at midnight, or by whole days, what others do at two in the morning.
ODD_ZONES = (
    "America/Havana",  # forward over midnight; back from 01:00 to it: midnight comes twice
    "America/New_York",
    "America/Nuuk",  # back from 00:00 to 23:00
    "America/Sao_Paulo",  # forward over midnight, back from it
    "America/St_Johns",  # 2006 to 2011 at 00:01: a minute of the new day, and the old one again
    "Africa/Cairo",
    "Antarctica/Casey",  # three hours at once
    "Antarctica/Troll",  # two
    "Asia/Amman",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Kathmandu",
    "Asia/Tehran",
    "Australia/Lord_Howe",  # half an hour
    "Europe/Vienna",
    "Pacific/Apia",  # without 30 December 2011
    "Pacific/Chatham",
    "Pacific/Kwajalein",  # without a day of August 1993
    "UTC",
)


def microseconds(moment: datetime) -> int:
    """Return the microseconds since the Unix epoch."""
    return round(moment.timestamp()) * SECOND


def watch(zone: str, first: date, days: int) -> Iterator[tuple[int, date]]:
    """Watch the clock of ``zone`` for so many days, minute by minute; tell when it first shows a date, and which."""
    place = ZoneInfo(zone)
    moment = datetime(first.year, first.month, first.day, tzinfo=UTC)
    latest = moment.astimezone(place).date()
    for _ in range(days * 24 * 60):
        moment += timedelta(minutes=1)
        shown = moment.astimezone(place).date()
        if shown > latest:  # a date that is shown again is not new
            latest = shown
            yield microseconds(moment), shown


@cache
def days_around(zone: str, day: date) -> list[int]:
    """Return when the dates around ``day`` began."""
    return [moment for moment, _ in watch(zone, day - timedelta(days=4), 9)]


@cache
def month_begins(zone: str, year: int, month: int) -> int:
    """Return when the clock first showed a date of that month."""
    first = date(year, month, 1)
    return next(moment for moment, shown in watch(zone, first - timedelta(days=3), 6) if shown >= first)


def bounds_by_watching(period: Period, zone: str, now: int) -> Bounds:
    """Return the period that ``now`` lies in, by the dates that were seen to begin."""
    day = datetime.fromtimestamp(now // SECOND, UTC).date()
    if period is Period.DAY:
        edges = days_around(zone, day)
    else:
        months = [divmod(day.year * 12 + day.month - 1 + offset, 12) for offset in range(-1, 4)]
        edges = [month_begins(zone, year, month + 1) for year, month in months]
    start = max(edge for edge in edges if edge <= now)
    end, next_end = [edge for edge in edges if edge > now][:2]
    return Bounds(start, end, next_end)


@cache
def changes(zone: str) -> list[int]:
    """Return the hours after which the clock of ``zone`` was changed, in years with something to see."""
    place = ZoneInfo(zone)
    found = []
    for year in (1993, 2006, 2007, 2010, 2011, 2018, 2023, 2026):
        moment = datetime(year, 1, 1, tzinfo=UTC)
        while moment.year == year:
            later = moment + timedelta(hours=6)
            if moment.astimezone(place).utcoffset() != later.astimezone(place).utcoffset():
                found.append(microseconds(moment))
            moment = later
    return found


@st.composite
def odd_moments(draw: st.DrawFn) -> tuple[str, int]:
    """Draw a zone and a moment, within a day or two of a change of its clocks where there is one."""
    zone = draw(st.sampled_from(ODD_ZONES))
    around = draw(st.sampled_from(changes(zone) or [microseconds(datetime(2026, 11, 1, tzinfo=UTC))]))
    return zone, around + draw(st.integers(-50 * 4, 50 * 4)) * (HOUR // 4) + draw(st.integers(-1, 1))


@settings(max_examples=2 * EXAMPLES)
@given(odd_moments())
def test_a_day_begins_when_its_date_is_first_shown(zone_and_now: tuple[str, int]) -> None:
    """Whatever clocks do at midnight, a day is from its date's first instant to that of the next date there is."""
    zone, now = zone_and_now
    assert bounds(Period.DAY, zone, now) == bounds_by_watching(Period.DAY, zone, now)


@settings(max_examples=EXAMPLES // 2)
@given(odd_moments())
def test_a_month_begins_when_its_first_date_is_first_shown(zone_and_now: tuple[str, int]) -> None:
    """A month is from the first instant of its first date to that of the next month."""
    zone, now = zone_and_now
    assert bounds(Period.MONTH, zone, now) == bounds_by_watching(Period.MONTH, zone, now)


@settings(max_examples=2 * EXAMPLES)
@given(
    st.sampled_from(Period),
    st.sampled_from(sorted(zone_names())),
    st.integers(microseconds(datetime(1972, 1, 1, tzinfo=UTC)), microseconds(datetime(2100, 1, 1, tzinfo=UTC))),
)
def test_periods_follow_each_other_without_a_gap(period: Period, zone: str, now: int) -> None:
    """In any zone, each moment lies in one period, and the next begins where it ends, of a length that periods have."""
    this = bounds(period, zone, now)
    assert this.start <= now < this.end
    assert bounds(period, zone, this.start) == bounds(period, zone, this.end - 1) == this
    following = bounds(period, zone, this.end)
    assert (following.start, following.end) == (this.end, this.next_end)
    assert bounds(period, zone, this.start - 1)[1:] == this[:2]
    hours = (this.end - this.start) // HOUR
    assert 16 < hours < 36 if period is Period.DAY else 27 * 24 < hours < 32 * 24


@given(st.lists(st.tuples(st.sampled_from(Period), odd_moments()), min_size=2, max_size=12))
def test_what_is_remembered_does_not_mislead(asked: list[tuple[Period, tuple[str, int]]]) -> None:
    """Asked back and forth in time and across zones, the answer is that of one who has never been asked before."""
    answers = [bounds(period, zone, now) for period, (zone, now) in asked]
    for (period, (zone, now)), answer in zip(asked, answers, strict=True):
        calendar._latest.clear()
        first_instant.cache_clear()
        assert bounds(period, zone, now) == answer


@pytest.mark.parametrize(
    ("zone", "day", "first", "hours"),
    [
        ("UTC", "2026-02-28", "2026-02-28T00:00+00:00", 24),
        ("America/New_York", "2026-03-08", "2026-03-08T00:00-05:00", 23),
        ("America/New_York", "2026-11-01", "2026-11-01T00:00-04:00", 25),
        ("Europe/Vienna", "2026-03-29", "2026-03-29T00:00+01:00", 23),
        ("Europe/Vienna", "2026-10-25", "2026-10-25T00:00+02:00", 25),
        ("Australia/Lord_Howe", "2026-04-05", "2026-04-05T00:00+11:00", 24.5),
        ("Australia/Lord_Howe", "2026-10-04", "2026-10-04T00:00+10:30", 23.5),
        ("America/Sao_Paulo", "2018-02-17", "2018-02-17T00:00-02:00", 25),
        ("America/Sao_Paulo", "2018-11-04", "2018-11-04T01:00-02:00", 23),
        ("Asia/Beirut", "2026-03-29", "2026-03-29T01:00+03:00", 23),
        ("Asia/Beirut", "2026-10-24", "2026-10-24T00:00+03:00", 25),
        ("Africa/Cairo", "2024-04-26", "2024-04-26T01:00+03:00", 23),
        ("Africa/Cairo", "2024-10-31", "2024-10-31T00:00+03:00", 25),
        ("America/Havana", "2026-03-08", "2026-03-08T01:00-04:00", 23),
        ("America/Havana", "2026-11-01", "2026-11-01T00:00-04:00", 25),
        ("America/St_Johns", "2006-10-28", "2006-10-28T00:00-02:30", 24),
        ("America/St_Johns", "2006-10-29", "2006-10-29T00:00-02:30", 25),
        ("America/St_Johns", "2011-03-13", "2011-03-13T00:00-03:30", 23),
        ("Antarctica/Troll", "2026-03-29", "2026-03-29T00:00+00:00", 22),
        ("America/Toronto", "1919-03-31", "1919-03-31T00:30-04:00", 23.5),  # 23:30 was followed by 00:30
        ("Pacific/Apia", "2011-12-29", "2011-12-29T00:00-10:00", 24),
        ("Pacific/Apia", "2011-12-31", "2011-12-31T00:00+14:00", 24),
        ("Pacific/Kwajalein", "1993-08-20", "1993-08-20T00:00-12:00", 24),
        ("Pacific/Kwajalein", "1993-08-22", "1993-08-22T00:00+12:00", 24),
    ],
)
def test_days_of_23_and_25_hours_are_days(zone: str, day: str, first: str, hours: float) -> None:
    """From the records: when a day began, and how long it was."""
    start = microseconds(datetime.fromisoformat(first))
    assert first_instant(zone, date.fromisoformat(day)) == start
    this = bounds(Period.DAY, zone, start)
    assert (this.start, this.end - this.start) == (start, hours * HOUR)


@pytest.mark.parametrize(
    ("zone", "first", "days"),
    [
        ("UTC", "2026-02-01T00:00+00:00", 28),
        ("UTC", "2028-02-01T00:00+00:00", 29),
        ("UTC", "2000-02-01T00:00+00:00", 29),
        ("UTC", "2100-02-01T00:00+00:00", 28),
        ("UTC", "2026-12-01T00:00+00:00", 31),
        ("Asia/Kathmandu", "2026-04-01T00:00+05:45", 30),
        ("America/New_York", "2026-03-01T00:00-05:00", 31 - 1 / 24),
        ("America/New_York", "2026-11-01T00:00-04:00", 30 + 1 / 24),
        ("America/St_Johns", "2009-11-01T00:00-02:30", 30 + 1 / 24),  # one minute of November, October again
        ("Pacific/Apia", "2011-12-01T00:00-10:00", 30),
    ],
)
def test_months_are_as_long_as_they_are(zone: str, first: str, days: float) -> None:
    """Leap years, changes of the clocks, a month that lost a day: from the first instant to the last microsecond."""
    start = microseconds(datetime.fromisoformat(first))
    length = round(days * 24) * HOUR
    for now in (start, start + length - 1):
        assert bounds(Period.MONTH, zone, now)[:2] == (start, start + length)
    assert bounds(Period.MONTH, zone, start - 1).end == start


@pytest.mark.parametrize("minutes", [1, 30, 60])
def test_a_date_that_is_shown_again_is_over(minutes: int) -> None:
    """St. John's, 2 November 2008: at 00:01 it was 23:01 of the 1st again; the 2nd goes on."""
    sunday = microseconds(datetime.fromisoformat("2008-11-02T00:00-02:30"))
    assert bounds(Period.DAY, "America/St_Johns", sunday + minutes * 60 * SECOND).start == sunday


def test_an_unknown_zone_is_an_error() -> None:
    """A zone that is none raises, and is not among the names that a caller may give."""
    with pytest.raises(KeyError):
        bounds(Period.DAY, "Europe/Nowhere", 0)
    assert "Europe/Nowhere" not in zone_names()
    assert {"UTC", "America/New_York"} <= zone_names()
    assert "localtime" not in zone_names()
