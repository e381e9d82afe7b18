"""What a database says of itself, for whoever wants to know before anything is built on it. Nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from sqlalchemy import select, text

from formgate_server.storage.sql import migrate
from formgate_server.storage.sql.connection import Connection
from formgate_server.storage.sql.dialect import is_forgetful
from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.tables import accounts, fingerprints

_POSTGRESQL = text(
    "SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())::float8,"
    " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
    " (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), inet_client_addr() <<= '127.0.0.0/8'::inet"
    " OR inet_client_addr() = '::1'::inet OR inet_client_addr() IS NULL"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """How it is. What only a server has is None for SQLite."""

    version: str
    problem: str = ""
    """Why this version can not use it, and what to do; empty: it can."""
    forgetful: bool = False
    """Whether it may lose what it has acknowledged."""
    clock_skew: float | None = None
    """By how many seconds its clock is before ours."""
    connections: int | None = None
    """How many it takes in all."""
    in_clear: bool = False
    """Whether what is asked passes a network unencrypted."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in its tables that a server must fit to."""

    fingerprints: frozenset[tuple[str, str]]
    """The name and public id of each pepper and sealing key that it was used with."""
    plans: frozenset[tuple[str, str]]
    """Policy and plan of all accounts."""


async def look(database: Database) -> Facts:
    """Return the facts. Raises UnavailableError."""
    async with database.reading() as connection:
        if connection.dialect_name == "sqlite":
            version = (await connection.execute(text("SELECT sqlite_version()"))).scalar_one()
            facts = Facts(f"SQLite {version}")
        else:
            facts = await _postgresql(connection)
    return replace(facts, problem=await _problem(database))


async def _postgresql(connection: Connection) -> Facts:
    before = time.time()
    version, now, most, encrypted, loopback = (await connection.execute(_POSTGRESQL)).one()
    skew = now - (before + time.time()) / 2
    return Facts(
        f"PostgreSQL {version}",
        forgetful=await is_forgetful(connection),
        clock_skew=skew,
        connections=most,
        in_clear=not (encrypted or loopback),
    )


async def _problem(database: Database) -> str:
    try:
        await migrate.check_tables(database)
    except UnfitDatabaseError as error:
        return str(error)
    return ""


async def contents(database: Database) -> Contents:
    """Return what is in its tables, which this version must be able to use. Raises UnavailableError."""
    async with database.reading() as connection:
        ids = (await connection.execute(select(fingerprints.c.name, fingerprints.c.value))).all()
    async with database.reading() as connection:
        plans = (await connection.execute(select(accounts.c.policy, accounts.c.plan).distinct())).all()
    return Contents(frozenset((row.name, row.value) for row in ids), frozenset((row.policy, row.plan) for row in plans))
