"""What a database belongs to."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from sqlalchemy import select

from formgate_server.storage.sql.dialect import alone, inserting
from formgate_server.storage.sql.tables import fingerprints

if TYPE_CHECKING:
    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database


class Fingerprints:
    """The public ids of the secrets that the rows of this database depend on, in sets by name (``pepper``)."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def check(self, name: str, values: Collection[str]) -> frozenset[str]:
        """Return the ids that are remembered by ``name``; where there are none, ``values`` are from now on."""
        async with self._database.writing() as connection:
            await alone(connection, "fingerprints")  # of two with different ones, one is the first
            query = select(fingerprints.c.value).where(fingerprints.c.name == name)
            there = frozenset((await connection.execute(query)).scalars())
            if not there:
                await _add(connection, name, values)
        return there or frozenset(values)

    async def remember(self, name: str, values: Collection[str]) -> None:
        """Remember ``values`` besides those that are there."""
        async with self._database.writing() as connection:
            await _add(connection, name, values)


async def _add(connection: Connection, name: str, values: Collection[str]) -> None:
    added = inserting(connection, fingerprints).on_conflict_do_nothing()
    await connection.execute(added, [{"name": name, "value": value} for value in sorted(values)])
