"""What usage records owe: written with them, and deleted when it is charged or given back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import delete, select, update

from formgate_server.core.ports import Owed
from formgate_server.storage.sql.dialect import batches
from formgate_server.storage.sql.epochs import clock
from formgate_server.storage.sql.tables import usage_outbox

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database

_ROW = usage_outbox.c
_OWED = select(*(_ROW[name] for name in Owed._fields))


async def add(connection: Connection, owed: Sequence[Owed]) -> None:
    """Write down what is owed from now on, in the connection's transaction."""
    if owed:
        now = clock(connection.dialect_name)
        time: int = (await connection.execute(select(now))).scalar_one()
        await connection.execute(usage_outbox.insert(), [each._asdict() | {"time": time} for each in owed])


async def take(database: Database, older_than: int, most: int) -> list[Owed]:
    """See ``UsageLedger.pending``. Nobody waits for a row that somebody else is taking."""

    async def old(connection: Connection) -> list[Owed]:
        time = clock(connection.dialect_name) - older_than
        oldest = _OWED.where(_ROW.time <= time).order_by(_ROW.time).limit(most)
        return [Owed(*row) for row in await connection.execute(oldest.with_for_update(skip_locked=True))]

    async with database.reading() as connection:  # mostly there is nothing, and that costs no transaction
        there = await connection.execute(
            select(_ROW.time).where(_ROW.time <= clock(connection.dialect_name) - older_than).limit(1)
        )
    if there.first() is None:
        return []
    async with database.writing(urgent=False) as connection:
        taken = await old(connection)
        for of_account in _by_account(taken):
            await connection.execute(
                update(usage_outbox).where(*of_account).values(time=clock(connection.dialect_name))
            )
    return taken


async def remove(database: Database, settled: Sequence[Owed]) -> None:
    """See ``UsageLedger.done``."""
    if not settled:
        return
    async with database.writing(urgent=False) as connection:
        for of_account in _by_account(settled):
            await connection.execute(delete(usage_outbox).where(*of_account))


def _by_account(owed: Sequence[Owed]) -> list[tuple[ColumnElement[bool], ...]]:
    """Return what selects these rows, an account at a time, in the one order in which all lock them.

    Not by pairs: what SQLite makes of (account_id, record_id) IN (...) is a scan of the whole table.
    """
    record_ids: dict[str, list[str]] = {}
    for each in sorted(owed):
        record_ids.setdefault(each.account_id, []).append(each.record_id)
    return [
        (_ROW.account_id == account_id, _ROW.record_id.in_(some))
        for account_id, ids in record_ids.items()
        for some in batches(ids)
    ]
