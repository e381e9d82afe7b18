"""How PostgreSQL goes about what is asked of it: by an index, however large the tables are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import URL

from formgate_server.storage.sql.engine import Database
from formgate_server.storage.sql.keys import SqlKeyStore
from tests.support.changing import fill
from tests.support.postgres import PostgresServer
from tests.support.stores import POLICIES, digest, opened, sql_stores
from tests.support.using import Statements, use, watched

_BY_INDEX = {"Index Scan", "Index Only Scan", "Bitmap Index Scan"}


@pytest.fixture
async def url(postgres_server: PostgresServer) -> AsyncIterator[URL]:
    """A database with one account and one key in it."""
    async with postgres_server.database() as url:
        yield url


@pytest.fixture
async def database(url: URL) -> AsyncIterator[Database]:
    """The same, open."""
    async with opened(url) as database:
        await fill(database)
        yield database


async def walks(server: PostgresServer, url: URL, statements: Statements) -> list[str]:
    """Return the statements that go through a whole table or a whole index, where they can do otherwise."""
    found = []
    connection = await server.connect(str(url.database))
    try:
        await connection.execute("SET enable_seqscan = off")  # tables are small here
        for statement, values in statements.items():
            (told,) = await connection.fetchrow(f"EXPLAIN (FORMAT JSON) {statement}", *values)
            steps = list(steps_of(json.loads(told)[0]["Plan"]))
            if any(is_walk(step) for step in steps):
                found.append(f"{statement}\n{told}")
    finally:
        await connection.close()
    return found


def steps_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a plan and all that it is made of."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from steps_of(part)


def is_walk(step: dict[str, Any]) -> bool:
    """Tell whether a step of a plan goes through everything there is."""
    return step["Node Type"] == "Seq Scan" or (step["Node Type"] in _BY_INDEX and "Index Cond" not in step)


async def test_nothing_goes_through_a_whole_table(
    postgres_server: PostgresServer, url: URL, database: Database
) -> None:
    """Neither a check, nor a change, nor a record of usage, nor a report."""
    with watched() as statements:
        await use(sql_stores(database))
    keys = SqlKeyStore(database, POLICIES)
    await keys.find([digest("a"), digest("b")])
    (check,) = keys._lookup._sql.values()
    asked = {each: values for each, values in statements.items() if " " in each.strip()}
    asked[check] = ([digest("a"), digest("b")],)
    assert len(asked) > 30
    assert await walks(postgres_server, url, asked) == []


async def test_a_walk_would_be_seen(postgres_server: PostgresServer, url: URL, database: Database) -> None:
    """The test above can fail."""
    with watched() as statements:
        await sql_stores(database).registry.plans()
    (seen,) = await walks(postgres_server, url, statements)
    assert "accounts" in seen
