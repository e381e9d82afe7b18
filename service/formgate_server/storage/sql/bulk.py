"""Many rows in one statement, past SQLAlchemy's compiler: its work for each value costs more than all the rest.

PostgreSQL takes an array for each column, SQLite's driver the rows one by one in its own thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON, BigInteger, Integer, LargeBinary

if TYPE_CHECKING:
    from sqlalchemy import Column, Table

    from formgate_server.storage.sql.connection import Connection


class Bulk:
    """An insert of many rows into ``table``; ``tail`` is the SQL after it, the same for both."""

    def __init__(self, table: Table, tail: str = "") -> None:
        columns = list(table.columns)
        names = ", ".join(column.name for column in columns)
        given = ", ".join(f"${number}::{_type(column)}[]" for number, column in enumerate(columns, 1))
        chosen = ", ".join(f"{each.name}::json" if isinstance(each.type, JSON) else each.name for each in columns)
        into = f"INSERT INTO {table.name} ({names})"
        # Of names of ours only; every value is a parameter.
        self._postgres = f"{into} SELECT {chosen} FROM unnest({given}) AS given ({names}) {tail}"  # noqa: S608
        self._sqlite = f"{into} VALUES ({', '.join('?' for _ in columns)}) {tail}"

    async def __call__(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> Sequence[Sequence[Any]]:
        """Insert ``rows``, JSON as a text, in their order. Returns what PostgreSQL returns; of SQLite, nothing."""
        if not rows:
            return ()
        if connection.dialect_name == "postgresql":
            return await connection.execute_plain(self._postgres, tuple(map(list, zip(*rows, strict=True))))
        return await connection.execute_plain(self._sqlite, list(rows))


def _type(column: Column[Any]) -> str:
    """Return PostgreSQL's name for what a column is given as."""
    if isinstance(column.type, BigInteger):
        return "bigint"
    if isinstance(column.type, Integer):
        return "integer"
    return "bytea" if isinstance(column.type, LargeBinary) else "text"
