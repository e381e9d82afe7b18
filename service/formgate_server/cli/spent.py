"""How sums of usage look: hours or days in a row, with bars; or as CSV."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from formgate.v1.accounts_pb2 import GetUsageResponse, UsageBucket
from formgate_server.cli import bars, output, people
from formgate_server.cli.text import safe
from formgate_server.core import calendar
from formgate_server.core.model import Period

_HOUR = 3_600_000_000
_WIDE = 110
_LONG, _SHORT = 40, 20


class Span(NamedTuple):
    """What was asked for: usage of [start, end), in microseconds, by days of ``zone``, or of hours where it is None."""

    start: int
    end: int
    zone: str | None
    group_by: str = ""

    def starts(self) -> Iterator[int]:
        """Return where each of its hours or days begins."""
        now = self.start - self.start % _HOUR if self.zone is None else self._day(self.start).start
        while now < self.end:
            yield now
            now = now + _HOUR if self.zone is None else self._day(now).end

    def _day(self, now: int) -> calendar.Bounds:
        return calendar.bounds(Period.DAY, self.zone or "UTC", now)

    def label(self, start: int) -> str:
        """Return how an hour or a day is called."""
        there = datetime.fromtimestamp(start // 1_000_000, ZoneInfo(self.zone or "UTC"))
        return f"{there:%Y-%m-%d %H:%MZ}" if self.zone is None else f"{there:%Y-%m-%d}"


def render(response: GetUsageResponse, span: Span) -> RenderableType:
    """Return the sums as bars, and what they come to."""
    buckets = list(response.buckets)
    if not span.group_by:
        buckets = list(_filled(buckets, span))
    total = sum(bucket.units for bucket in buckets)
    records = sum(bucket.records for bucket in buckets)
    parts: list[RenderableType] = [_row_by_row(buckets, span)]
    if span.group_by:
        parts += ["", _by_group(buckets, span.group_by)]
    zone = f"days of {span.zone}" if span.zone else "hours of UTC"
    return Group(*parts, "", Text(f"{total:,} units in {records:,} records, by {safe(zone)}", style="dim"))


def _filled(buckets: Iterable[UsageBucket], span: Span) -> Iterator[UsageBucket]:
    """Put in the hours or days without usage."""
    there = {bucket.start_time.ToMicroseconds(): bucket for bucket in buckets}
    for start in sorted({*there, *span.starts()}):
        empty = UsageBucket()
        empty.start_time.FromMicroseconds(start)
        yield there.get(start, empty)


def _row_by_row(buckets: Iterable[UsageBucket], span: Span) -> Table:
    buckets = list(buckets)
    largest = max((bucket.units for bucket in buckets), default=0)
    made = people.table("HOUR" if span.zone is None else "DAY", *(["GROUP"] if span.group_by else []), *_AMOUNTS)
    _to_the_right(made)
    last = ""
    for bucket in buckets:
        label = span.label(bucket.start_time.ToMicroseconds())
        group = [safe(bucket.group)] if span.group_by else []
        made.add_row("" if label == last else label, *group, *_amounts(bucket.units, bucket.records, largest))
        last = label
    return made


def _by_group(buckets: Iterable[UsageBucket], group_by: str) -> Table:
    units: Counter[str] = Counter()
    records: Counter[str] = Counter()
    for bucket in buckets:
        units[bucket.group] += bucket.units
        records[bucket.group] += bucket.records
    made = people.table("GROUP", *_AMOUNTS)
    made.columns[0].header = safe(group_by.upper())
    _to_the_right(made)
    largest = max(units.values(), default=0)
    for group, amount in units.most_common():
        made.add_row(safe(group) or "none", *_amounts(amount, records[group], largest))
    return made


_AMOUNTS = ("", "UNITS", "RECORDS")


def _amounts(units: int, records: int, largest: int) -> tuple[Text, str, str]:
    length = _LONG if output.stdout().width >= _WIDE else _SHORT
    return bars.column(units, largest, length), f"{units:,}", f"{records:,}"


def _to_the_right(table: Table) -> None:
    for column in table.columns[-2:]:
        column.justify = "right"


def print_csv(response: GetUsageResponse, span: Span) -> None:
    """Print the sums as CSV; a day begins with its zone's offset, an hour with Z."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["start_time", "group", "units", "records"])
    for bucket in response.buckets:
        start = datetime.fromtimestamp(bucket.start_time.seconds, ZoneInfo(span.zone or "UTC"))
        when = f"{start:%Y-%m-%dT%H:%M:%SZ}" if span.zone is None else start.isoformat()
        writer.writerow([when, safe(bucket.group), bucket.units, bucket.records])
