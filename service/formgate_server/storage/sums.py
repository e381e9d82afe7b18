"""Sums of usage, as every store makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from formgate_server.core.ports import UsageEntry

HOUR = 3_600_000_000

LARGEST = 2**63 - 1
"""Units stay there: a sum may not fail, nor silently turn into a float as SQLite has it."""

OTHER = "__other__"
"""Stands for a tag's values beyond the first of an hour."""

_MOST_VALUES = 1_000


class Sum(NamedTuple):
    """How many units in how many records."""

    units: int = 0
    records: int = 0

    def plus(self, other: Sum) -> Sum:
        """Return both together."""
        return Sum(min(self.units + other.units, LARGEST), self.records + other.records)


def of(entry: UsageEntry) -> Sum:
    """Return what one record adds."""
    return Sum(entry.record.units, 1)


def hour_of(entry: UsageEntry) -> int:
    """Return when the hour (UTC) begins in which it happened."""
    return entry.occur_time // HOUR * HOUR


def room(values: int) -> int:
    """Tell how many values more may have sums of their own in a tag's hour that has ``values``."""
    return max(0, _MOST_VALUES - values)
