"""What SQLite and PostgreSQL have alike, but SQLAlchemy only for each by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, TypeVar, cast

from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

if TYPE_CHECKING:
    from sqlalchemy import Table

    from formgate_server.storage.sql.connection import Connection

_T = TypeVar("_T")


def inserting(connection: Connection, table: Table) -> sqlite.Insert:
    """Return an insert into ``table`` that can say what is to be done on a conflict."""
    if connection.dialect_name == "postgresql":
        return cast(sqlite.Insert, postgresql.insert(table))  # the methods are the same
    return sqlite.insert(table)


async def alone(connection: Connection, purpose: str, *, seconds: float | None = None) -> None:
    """Wait until nobody else has said the same; until the transaction ends, whoever does waits for it.

    ``seconds``: how long this and every other lock may be waited for, and no end to what statements may take.
    """
    if connection.dialect_name != "postgresql":
        return  # one writes at a time
    if seconds is not None:
        await connection.execute(text(f"SET LOCAL lock_timeout = {int(seconds * 1_000)}"))
        await connection.execute(text("SET LOCAL statement_timeout = 0"))
    await connection.execute(
        text("SELECT pg_advisory_xact_lock(hashtext(:purpose))"), {"purpose": f"formgate {purpose}"}
    )


@asynccontextmanager
async def unhurried(connection: Connection, seconds: float | None) -> AsyncIterator[None]:
    """Let statements take ``seconds`` within the block; None: they may take as long as they do anyway."""
    if seconds is None:
        yield
        return
    await connection.execute(text(f"SET statement_timeout = {int(seconds * 1_000)}"))
    try:
        yield
    finally:
        with suppress(DBAPIError):  # it is lost
            await connection.execute(text("RESET statement_timeout"))


async def is_forgetful(connection: Connection) -> bool:
    """Tell whether the server acknowledges what it may lose when it fails."""
    if connection.dialect_name != "postgresql":
        return False
    shown: str = (await connection.execute(text("SHOW synchronous_commit"))).scalar_one()
    return shown == "off"


def batches(values: Collection[_T], size: int = 1_000) -> Iterator[list[_T]]:
    """Yield ``values`` in lists that one statement can take; SQLite and asyncpg stop at 32,766 parameters."""
    rest = iter(values)
    while batch := list(islice(rest, size)):
        yield batch
