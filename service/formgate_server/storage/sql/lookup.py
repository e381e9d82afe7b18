"""A select that is asked all the time, on the shortest way to the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam

from formgate_server.storage.sql.errors import translated

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

    from formgate_server.storage.sql.engine import Database


class Lookup:
    """Selects rows by a list of values.

    SQLAlchemy's asyncio takes five hops to SQLite's thread for a select, and as many waits for the GIL. This takes one:
    the statement is SQLAlchemy's, compiled once for each length of the list, but the driver runs it.
    """

    def __init__(self, database: Database, select: Select[Any], column: ColumnElement[Any]) -> None:
        self._database = database
        self._select = select.where(column.in_(bindparam("values", expanding=True)))
        self._sql: dict[int, str] = {}
        dialect = database.reader.dialect
        readers = (
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in select.selected_columns
        )
        self._readers = tuple((at, reader) for at, reader in enumerate(readers) if reader is not None)

    async def rows(self, values: Sequence[object]) -> list[list[Any]]:
        """Return the rows of any of ``values``, read after the call began."""
        sql = self._sql.get(len(values)) or self._compile(len(values))
        with translated():
            connection = await self._database.lookups()
            found = await connection.execute_fetchall(sql, values)
        return [self._read(row) for row in found]

    def _compile(self, length: int) -> str:
        statement = self._select.params(values=[b""] * length)
        dialect = self._database.reader.dialect
        sql = str(statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True}))
        self._sql[length] = sql
        return sql

    def _read(self, row: Sequence[Any]) -> list[Any]:
        values = list(row)
        for at, reader in self._readers:
            values[at] = reader(values[at])
        return values
