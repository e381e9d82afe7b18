"""The counters' marks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from sqlalchemy import select

from formgate_server.core.ports import Reserved
from formgate_server.storage.sql.dialect import batches, inserting
from formgate_server.storage.sql.rows import state_of, state_values
from formgate_server.storage.sql.tables import reservations

if TYPE_CHECKING:
    from formgate_server.storage.sql.engine import Database


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
            marks |= {counter_id: Reserved(state_of(state), ahead) for counter_id, state, ahead in rows}
        return marks

    async def save(self, marks: Mapping[str, Reserved]) -> None:
        """See ``Reservations``."""
        if not marks:
            return
        rows = [
            {"counter_id": counter_id, "state": state_values(mark.state), "ahead": mark.ahead}
            for counter_id, mark in sorted(marks.items())
        ]
        async with self._database.writing() as connection:
            added = inserting(connection, reservations)
            replaced = added.on_conflict_do_update(
                index_elements=[reservations.c.counter_id],
                set_={"state": added.excluded.state, "ahead": added.excluded.ahead},
            )
            await connection.execute(replaced, rows)
