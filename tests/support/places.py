"""Where a database is, for tests that look at it from outside: by SQL of their own, and at its schema."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import URL

from tests.support.postgres import PostgresServer
from tests.support.stores import database_url


class Place(Protocol):
    """A database, empty at first."""

    @property
    def url(self) -> URL:
        """Where it is."""
        ...

    async def run(self, script: str) -> None:
        """Run statements; bytes are written as SQLite has them, ``X'00'``."""
        ...

    async def columns(self, table: str) -> list[str]:
        """Return the names of a table's columns, in order."""
        ...

    async def schema(self) -> dict[str, str]:
        """Return what each table and index is, written in one way."""
        ...


class SqlitePlace:
    """A file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @property
    def url(self) -> URL:
        """See ``Place``."""
        return database_url(self.file)

    async def run(self, script: str) -> None:
        """See ``Place``."""
        with closing(sqlite3.connect(self.file)) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.executescript(script)

    async def columns(self, table: str) -> list[str]:
        """See ``Place``."""
        with closing(sqlite3.connect(self.file)) as connection:
            return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]

    async def schema(self) -> dict[str, str]:
        """See ``Place``: the SQL itself."""
        with closing(sqlite3.connect(self.file)) as connection:
            rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
        return {name: re.sub(r"\s+", " ", sql.replace("(", " ( ").replace(")", " ) ")) for name, sql in rows}


_COLUMNS = """
SELECT table_name || '.' || column_name,
    concat_ws(' ', data_type, character_maximum_length, collation_name, is_nullable, column_default)
FROM information_schema.columns WHERE table_schema = 'public'
"""
_INDEXES = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
_CONSTRAINTS = (
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
)


class PostgresPlace:
    """A database of a server."""

    def __init__(self, server: PostgresServer, url: URL) -> None:
        self.server = server
        self.url = url

    async def run(self, script: str) -> None:
        """See ``Place``."""
        await self.server.execute(re.sub(r"X'(\w*)'", r"'\\x\1'", script), str(self.url.database))

    async def columns(self, table: str) -> list[str]:
        """See ``Place``."""
        query = "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position"
        return [row[0] for row in await self._fetch(query, table)]

    async def schema(self) -> dict[str, str]:
        """See ``Place``: columns, indexes and constraints by name."""
        found: dict[str, str] = {}
        for kind, query in {"column": _COLUMNS, "index": _INDEXES, "constraint": _CONSTRAINTS}.items():
            found |= {f"{kind} {name}": definition for name, definition in await self._fetch(query)}
        return found

    async def _fetch(self, query: str, *values: object) -> list[Any]:
        connection = await self.server.connect(str(self.url.database))
        try:
            return list(await connection.fetch(query, *values))
        finally:
            await connection.close()
