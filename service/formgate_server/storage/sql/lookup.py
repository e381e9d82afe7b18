"""A select that is asked all the time, on the shortest way to the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import JSON

from formgate_server.storage.sql.errors import translated

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Dialect, Select

    from formgate_server.storage.sql.engine import Database


class Lookup:
    """Selects rows by a list of values: SQLAlchemy's statement, compiled once a length of list, run by the driver."""

    def __init__(self, database: Database, select: Select[Any], column: ColumnElement[Any]) -> None:
        self._database = database
        self._select = select
        self._column = column
        self._sql: dict[int, str] = {}
        dialect = database.reader.dialect
        readers = (_reader(column, dialect) for column in select.selected_columns)
        self._readers = tuple((at, reader) for at, reader in enumerate(readers) if reader is not None)

    async def rows(self, values: Sequence[object]) -> list[list[Any]]:
        """Return the rows of any of ``values``, read after the call began."""
        length = len(values)
        lookups = self._database.lookups
        sql = self._sql.get(length)
        if sql is None:
            sql = self._sql[length] = lookups.compile(self._select, self._column, length)
        with translated():
            found = await lookups.fetch(sql, values)
        return [self._read(row) for row in found]

    def _read(self, row: Sequence[Any]) -> list[Any]:
        values = list(row)
        for at, reader in self._readers:
            values[at] = reader(values[at])
        return values


def _reader(column: ColumnElement[Any], dialect: Dialect) -> Callable[[Any], Any] | None:
    """Return what makes the column's values of what the driver returns; None: they are the same."""
    if isinstance(column.type, JSON):
        return _json  # a text by both drivers, as long as nobody sets up asyncpg otherwise
    return column.type.dialect_impl(dialect).result_processor(dialect, None)


def _json(text: str | None) -> object:
    return None if text is None else json.loads(text)
