"""The accounts' epochs, and what follows them from one process to another."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)

from formgate_server.core.ports import News
from formgate_server.storage.sql.dialect import batches
from formgate_server.storage.sql.tables import accounts, changes

if TYPE_CHECKING:
    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database

_OVERLAP = 60 * 1_000_000  # a transaction that takes longer than half of this is ended by the database

_CLOCKS = {
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000",
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)",
}

# What is committed may stay unseen for as long as PostgreSQL waits for a standby, and its time be long over then.
_OLDEST = """
SELECT CAST(extract(epoch FROM min(xact_start)) * 1000000 AS bigint) FROM pg_stat_get_activity(NULL)
WHERE backend_xid IS NOT NULL AND datid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def clock(dialect_name: str) -> ColumnElement[int]:
    """Return the database's own clock, in microseconds since the Unix epoch."""
    return literal_column(_CLOCKS[dialect_name], BigInteger)


def _until(dialect_name: str) -> ColumnElement[int]:
    """Return the database's own clock or, if that is earlier, when the oldest began of those who write there now."""
    now = clock(dialect_name)
    return func.least(now, literal_column(f"({_OLDEST})", BigInteger)) if dialect_name == "postgresql" else now


async def note(connection: Connection, account_id: str, epoch: int) -> None:
    """Write a new epoch down, in the connection's transaction."""
    time = clock(connection.dialect_name)
    await connection.execute(insert(changes).values(account_id=account_id, epoch=epoch, time=time))


class SqlEpochs:
    """The Epochs port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, account_ids: Collection[str]) -> Mapping[str, int]:
        """See ``Epochs``."""
        epochs: dict[str, int] = {}
        for some in batches(account_ids):
            async with self._database.reading() as connection:
                epochs |= await _pairs(
                    connection, select(accounts.c.account_id, accounts.c.epoch).where(accounts.c.account_id.in_(some))
                )
        return epochs

    async def since(self, moment: int | None) -> News:
        """See ``Epochs``. What is written and not to be seen yet is no older than the ``until`` that is told."""
        async with self._database.reading(anyway=True) as connection:
            until: int = (await connection.execute(select(_until(connection.dialect_name)))).scalar_one()
        if moment is None:
            return News({}, until)
        newest = select(changes.c.account_id, func.max(changes.c.epoch)).where(changes.c.time >= moment - _OVERLAP)
        async with self._database.reading(anyway=True) as connection:
            return News(await _pairs(connection, newest.group_by(changes.c.account_id)), until)

    async def forget(self, before: int, most: int) -> int:
        """See ``Epochs``."""
        over = select(changes.c.account_id, changes.c.epoch).where(changes.c.time < before).limit(most)
        async with self._database.writing(urgent=False) as connection:
            gone = await connection.execute(
                delete(changes).where(tuple_(changes.c.account_id, changes.c.epoch).in_(over))
            )
            return gone.rowcount

    async def renew(self, after: str, most: int) -> Sequence[str]:
        """See ``Epochs``. They count changes, from 1 or from the microsecond of the last ``renew``: time is beyond."""
        next_ones = select(accounts.c.account_id).where(accounts.c.account_id > after)
        async with self._database.writing(urgent=False) as connection:
            found = await connection.execute(next_ones.order_by(accounts.c.account_id).limit(most))
            account_ids: list[str] = list(found.scalars())
            if account_ids:
                time = clock(connection.dialect_name)
                these = accounts.c.account_id.between(account_ids[0], account_ids[-1])
                beyond = case((accounts.c.epoch >= time, accounts.c.epoch + 1), else_=time)
                await connection.execute(update(accounts).where(these).values(epoch=beyond))
                raised = select(accounts.c.account_id, accounts.c.epoch, time).where(these)
                await connection.execute(insert(changes).from_select(["account_id", "epoch", "time"], raised))
            return account_ids


async def _pairs(connection: Connection, query: Select[Any]) -> dict[str, int]:
    return {row[0]: row[1] for row in await connection.execute(query)}
