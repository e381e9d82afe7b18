"""The counters' marks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, select, true

from formgate_server.core.ports import Reserved
from formgate_server.storage.sql.dialect import batches, inserting
from formgate_server.storage.sql.rows import state_of, state_values
from formgate_server.storage.sql.tables import reservations

if TYPE_CHECKING:
    from formgate_server.storage.sql.engine import Database

_REPLACED = Reserved._fields


class SqlReservations:
    """The Reservations port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, counter_ids: Collection[str]) -> Mapping[str, Reserved]:
        """See ``Reservations``."""
        marks: dict[str, Reserved] = {}
        for some in batches(counter_ids):
            async with self._database.reading() as connection:
                rows = await connection.execute(select(reservations).where(reservations.c.counter_id.in_(some)))
            marks |= {counter_id: Reserved(state_of(state), *rest) for counter_id, state, *rest in rows}
        return marks

    async def save(self, marks: Mapping[str, Reserved]) -> None:
        """See ``Reservations``."""
        if not marks:
            return
        async with self._database.writing() as connection:
            added = inserting(connection, reservations)
            replaced = added.on_conflict_do_update(
                index_elements=[reservations.c.counter_id], set_={name: added.excluded[name] for name in _REPLACED}
            )
            await connection.execute(replaced, _rows(marks))

    async def advance(self, marks: Mapping[str, Reserved], *, insist: bool = False) -> Collection[str]:
        """See ``Reservations``."""
        if not marks:
            return ()
        async with self._database.writing() as connection:
            added = inserting(connection, reservations)
            there, new = reservations.c, added.excluded
            higher = there.serial < new.serial
            if not insist:
                # Where there is no such time, this is NULL, which is no reason against it.
                higher &= func.coalesce(there.expire_time <= new.expire_time, true())
            raised = added.on_conflict_do_update(
                index_elements=[there.counter_id], set_={name: new[name] for name in _REPLACED}, where=higher
            )
            written = await connection.execute(raised.returning(there.counter_id), _rows(marks))
            return set(written.scalars())

    async def forget(self, before: int, most: int) -> int:
        """See ``Reservations``."""
        over = select(reservations.c.counter_id).where(reservations.c.expire_time < before).limit(most)
        async with self._database.writing(urgent=False) as connection:
            gone = await connection.execute(delete(reservations).where(reservations.c.counter_id.in_(over)))
            return gone.rowcount


def _rows(marks: Mapping[str, Reserved]) -> list[dict[str, Any]]:
    """Return rows in the one order in which all write them: two at once do not lock each other out."""
    return [
        {"counter_id": counter_id, **mark._asdict(), "state": state_values(mark.state)}
        for counter_id, mark in sorted(marks.items())
    ]
