"""What SQLite and PostgreSQL have alike, but SQLAlchemy only for each by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

from sqlalchemy.dialects import postgresql, sqlite

if TYPE_CHECKING:
    from sqlalchemy import Table

    from formgate_server.storage.sql.connection import Connection

_T = TypeVar("_T")


def inserting(connection: Connection, table: Table) -> sqlite.Insert:
    """Return an insert into ``table`` that can say what is to be done on a conflict."""
    if connection.dialect_name == "postgresql":
        return cast(sqlite.Insert, postgresql.insert(table))  # the methods are the same
    return sqlite.insert(table)


def batches(values: Collection[_T], size: int = 1_000) -> Iterator[list[_T]]:
    """Yield ``values`` in lists that one statement can take; SQLite and asyncpg stop at 32,766 parameters."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
