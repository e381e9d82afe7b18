"""Usage that has been kept long enough goes, a little at a time, whoever else works on the database meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select, text, tuple_

from formgate_server.storage.sql.tables import usage_hours, usage_records, usage_tag_hours

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Table

    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database

# Two who delete the same rows at once would wait for each other, and gain nothing.
_TURN = text("SELECT pg_try_advisory_xact_lock(hashtext('formgate usage prune'))")


async def forget_records(database: Database, before: int, most: int) -> int | None:
    """See ``UsageLedger.forget_records``."""
    async with database.writing(urgent=False) as connection:
        if not await _is_alone(connection):
            return None
        return await _delete(connection, usage_records, usage_records.c.occur_time < before, most)


async def forget_sums(database: Database, before: int, most: int) -> int | None:
    """See ``UsageLedger.forget_sums``."""
    async with database.writing(urgent=False) as connection:
        if not await _is_alone(connection):
            return None
        gone = await _delete(connection, usage_hours, usage_hours.c.hour < before, most)
        return gone + await _delete(connection, usage_tag_hours, usage_tag_hours.c.hour < before, most - gone)


async def count(database: Database, records_before: int, sums_before: int) -> tuple[int, int]:
    """See ``UsageLedger.count_old``."""
    counts = []
    for table, old in (
        (usage_records, usage_records.c.occur_time < records_before),
        (usage_hours, usage_hours.c.hour < sums_before),
        (usage_tag_hours, usage_tag_hours.c.hour < sums_before),
    ):
        async with database.scanning() as connection:
            counts.append((await connection.execute(select(func.count()).select_from(table).where(old))).scalar_one())
    records, hours, tag_hours = counts
    return records, hours + tag_hours


async def _is_alone(connection: Connection) -> bool:
    if connection.dialect_name != "postgresql":
        return True  # one writes at a time
    alone: bool = (await connection.execute(_TURN)).scalar_one()
    return alone


async def _delete(connection: Connection, table: Table, old: ColumnElement[bool], most: int) -> int:
    """Delete at most ``most`` rows that are ``old``, by the index that finds them."""
    if not most:
        return 0
    key = list(table.primary_key)
    some = select(*key).where(old).limit(most)
    return (await connection.execute(delete(table).where(tuple_(*key).in_(some)))).rowcount
