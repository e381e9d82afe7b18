"""Sums of usage by the hour: by key and operation, and by the values of tags."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import ColumnElement, case, func, select, tuple_

from formgate_server.core.ports import UsageEntry, UsageFilter, UsageSum
from formgate_server.storage import sums
from formgate_server.storage.sql.dialect import batches, inserting
from formgate_server.storage.sql.tables import usage_hours, usage_tag_hours
from formgate_server.storage.sums import LARGEST, OTHER, Sum

if TYPE_CHECKING:
    from sqlalchemy import Table

    from formgate_server.storage.sql.connection import Connection

_TagHour: TypeAlias = tuple[str, str, int]
"""An account's tag in an hour."""

_HALF = 2**32
_BY_TAG = "tag:"
_TAG_HOUR = (usage_tag_hours.c.account_id, usage_tag_hours.c.tag, usage_tag_hours.c.hour)
_VALUE = (*_TAG_HOUR, usage_tag_hours.c.value)


async def add_up(connection: Connection, entries: Iterable[UsageEntry]) -> None:
    """Add records to the sums of their hours; of a tag's values, those that come first here are the first."""
    by_operation: dict[tuple[Any, ...], Sum] = {}
    by_value: dict[_TagHour, dict[str, Sum]] = {}
    for entry in entries:
        hour, one = sums.hour_of(entry), sums.of(entry)
        group = entry.account_id, entry.record.key_id, hour, entry.record.operation
        by_operation[group] = by_operation.get(group, Sum()).plus(one)
        for tag, value in entry.summed_tags:
            of_tag = by_value.setdefault((entry.account_id, tag, hour), {})
            of_tag[value] = of_tag.get(value, Sum()).plus(one)
    await _add(connection, usage_hours, by_operation)
    # Whoever adds values to a tag's hour has the row of __other__ locked: nobody else adds the last one meanwhile.
    await _add(connection, usage_tag_hours, {(*tag_hour, OTHER): Sum() for tag_hour in by_value})
    await _add(connection, usage_tag_hours, await _within_bounds(connection, by_value))


async def _add(connection: Connection, table: Table, added: Mapping[tuple[Any, ...], Sum]) -> None:
    """Add to the rows of ``table`` that have these primary keys, in the one order that all who do so keep to."""
    if not added:
        return
    statement = inserting(connection, table)
    old, new = table.c, statement.excluded
    units = case((old.units > LARGEST - new.units, LARGEST), else_=old.units + new.units)
    upsert = statement.on_conflict_do_update(
        index_elements=table.primary_key, set_={"units": units, "records": old.records + new.records}
    )
    names = [column.name for column in table.primary_key]
    rows = [dict(zip(names, group, strict=True)) | added[group]._asdict() for group in sorted(added)]
    await connection.execute(upsert, rows)


async def _within_bounds(
    connection: Connection, by_value: Mapping[_TagHour, Mapping[str, Sum]]
) -> dict[tuple[Any, ...], Sum]:
    """Return the sums with what goes to ``__other__`` put there."""
    there = await _there(connection, [(*tag_hour, value) for tag_hour, of_tag in by_value.items() for value in of_tag])
    new = {
        tag_hour: [value for value in of_tag if (*tag_hour, value) not in there]
        for tag_hour, of_tag in by_value.items()
    }
    counts = await _counts(connection, [tag_hour for tag_hour, values in new.items() if values])
    bounded: dict[tuple[Any, ...], Sum] = {}
    for tag_hour, of_tag in by_value.items():
        excess = set(new[tag_hour][sums.room(counts.get(tag_hour, 0)) :])
        for value, added in of_tag.items():
            group = (*tag_hour, OTHER if value in excess else value)
            bounded[group] = bounded.get(group, Sum()).plus(added)
    return bounded


async def _there(connection: Connection, groups: Collection[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
    """Return those of ``groups`` that have a row."""
    there: set[tuple[Any, ...]] = set()
    for some in batches(groups):
        rows = await connection.execute(select(*_VALUE).where(tuple_(*_VALUE).in_(some)))
        there.update((account_id, tag, hour, value) for account_id, tag, hour, value in rows)
    return there


async def _counts(connection: Connection, tag_hours: Collection[_TagHour]) -> dict[_TagHour, int]:
    """Return how many values have sums of their own; none: left out."""
    counts = {}
    for some in batches(tag_hours):
        query = (
            select(*_TAG_HOUR, func.count())
            .where(tuple_(*_TAG_HOUR).in_(some), usage_tag_hours.c.value != OTHER)
            .group_by(*_TAG_HOUR)
        )
        for account_id, tag, hour, count in await connection.execute(query):
            counts[account_id, tag, hour] = count
    return counts


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
