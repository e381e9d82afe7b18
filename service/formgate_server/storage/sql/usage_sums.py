"""Sums of usage by the hour: by key and operation, and by the values of tags."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import ColumnElement, func, select

from formgate_server.core.ports import UsageEntry, UsageFilter, UsageSum
from formgate_server.storage import sums
from formgate_server.storage.sql.bulk import Bulk
from formgate_server.storage.sql.dialect import batches
from formgate_server.storage.sql.tables import usage_hours, usage_tag_hours
from formgate_server.storage.sums import LARGEST, OTHER, Sum

if TYPE_CHECKING:
    from sqlalchemy import Table

    from formgate_server.storage.sql.connection import Connection

_Group: TypeAlias = tuple[Any, ...]
"""A primary key of the table."""
_Values: TypeAlias = dict[int, dict[str, Sum]]
"""By hour and a tag's value."""

_HALF = 2**32
_HOURS_AT_ONCE = 50  # every value of any of them is looked for in each
_BY_TAG = "tag:"


async def add_up(connection: Connection, entries: Iterable[UsageEntry]) -> None:
    """Add records to the sums of their hours; of a tag's values, those that come first here are the first."""
    by_operation: dict[_Group, list[int]] = {}
    by_tag: dict[tuple[str, str], _Values] = {}
    for entry in entries:
        account_id, occur_time, _, record, summed_tags = entry
        hour, units = occur_time - occur_time % sums.HOUR, record.units
        group = account_id, record.key_id, hour, record.operation
        there = by_operation.get(group)
        if there is None:
            by_operation[group] = [units, 1]
        else:  # no Sum a record: this runs for each
            there[0] += units
            there[1] += 1
        for tag, value in summed_tags:
            of_hour = by_tag.setdefault((account_id, tag), {}).setdefault(hour, {})
            of_hour[value] = of_hour.get(value, Sum()).plus(sums.of(entry))
    await _add(connection, _HOURS, {group: _bound(*both) for group, both in by_operation.items()})
    if not by_tag:
        return
    # Whoever adds values to a tag's hour has the row of __other__ locked: nobody else adds the last one meanwhile.
    await _add(
        connection,
        _TAG_HOURS,
        {(*of_tag, hour, OTHER): Sum() for of_tag, hours in by_tag.items() for hour in hours},
    )
    by_value: dict[_Group, Sum] = {}
    for of_tag, hours in by_tag.items():
        for some in batches(hours, _HOURS_AT_ONCE):
            by_value |= await _bounded(connection, of_tag, {hour: hours[hour] for hour in some})
    await _add(connection, _TAG_HOURS, by_value)


def _bound(units: int, records: int) -> Sum:
    return Sum(min(units, LARGEST), records)


def _adding(table: Table) -> Bulk:
    """Return an insert that adds to what is there."""
    name, key = table.name, ", ".join(column.name for column in table.primary_key)
    units = f"CASE WHEN {name}.units > {LARGEST} - excluded.units THEN {LARGEST} ELSE {name}.units + excluded.units END"
    return Bulk(
        table, f"ON CONFLICT ({key}) DO UPDATE SET units = {units}, records = {name}.records + excluded.records"
    )


_HOURS, _TAG_HOURS = _adding(usage_hours), _adding(usage_tag_hours)


async def _add(connection: Connection, adding: Bulk, added: Mapping[_Group, Sum]) -> None:
    """Add to the rows that have these primary keys, in the one order that all who do so keep to."""
    await adding(connection, [(*group, *added[group]) for group in sorted(added)])


async def _bounded(connection: Connection, of_tag: tuple[str, str], hours: _Values) -> dict[_Group, Sum]:
    """Return the sums of an account's tag by the rows to which they go: a value's own or, without room, the other."""
    row = usage_tag_hours.c
    tag = row.account_id == of_tag[0], row.tag == of_tag[1]
    there: set[tuple[int, str]] = set()
    # Not by pairs: what SQLite makes of (hour, value) IN (...) is a scan of the whole table.
    for some in batches(sorted({value for values in hours.values() for value in values})):
        found = select(row.hour, row.value).where(*tag, row.hour.in_(list(hours)), row.value.in_(some))
        there.update((hour, value) for hour, value in await connection.execute(found))
    new = {hour: [value for value in values if (hour, value) not in there] for hour, values in hours.items()}
    counted = select(row.hour, func.count()).where(*tag, row.hour.in_([hour for hour in new if new[hour]]))
    counts = await connection.execute(counted.where(row.value != OTHER).group_by(row.hour))
    rooms = dict.fromkeys(hours, sums.room(0)) | {hour: sums.room(count) for hour, count in counts}
    bounded: dict[_Group, Sum] = {}
    for hour, values in hours.items():
        excess = set(new[hour][rooms[hour] :])
        for value, added in values.items():
            group = (*of_tag, hour, OTHER if value in excess else value)
            bounded[group] = bounded.get(group, Sum()).plus(added)
    return bounded


async def read(connection: Connection, wanted: UsageFilter, group_by: str) -> list[UsageSum]:
    """See ``UsageLedger.sums``."""
    table, group, conditions = _grouped(wanted, group_by)
    hour, units = table.c.hour, table.c.units
    query = (
        # A database's own sum of units would fail, or turn into a float, beyond the largest number: it adds the halves.
        select(hour, *group, func.sum(units // _HALF), func.sum(units % _HALF), func.sum(table.c.records))
        .where(table.c.account_id == wanted.account_id, hour >= wanted.start, hour < wanted.end, *conditions)
        .group_by(hour, *group)
    )
    found = []
    for begin, *value, high, low, records in await connection.execute(query):
        total = min(int(high) * _HALF + int(low), LARGEST)
        found.append(UsageSum(begin, value[0] if value else "", total, int(records)))
    return sorted(found)  # by code point, whatever the database's locale


def _grouped(wanted: UsageFilter, group_by: str) -> tuple[Table, list[ColumnElement[str]], list[ColumnElement[bool]]]:
    """Return the table to read, what to group its hours by, and which of its rows count."""
    if group_by.startswith(_BY_TAG):
        row = usage_tag_hours.c
        return usage_tag_hours, [row.value], [row.tag == group_by.removeprefix(_BY_TAG), row.records > 0]
    groups: dict[str, list[ColumnElement[str]]] = {
        "": [],
        "key": [usage_hours.c.key_id],
        "operation": [usage_hours.c.operation],
    }
    return usage_hours, groups[group_by], [usage_hours.c.key_id == wanted.key_id] if wanted.key_id else []
