"""Each suite here runs over every store that implements its port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.support.stores import (
    Stores,
    account,
    cached,
    empty_database,
    memory_stores,
    opened,
    sql_stores,
)


@pytest.fixture(scope="session")
def template_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the migrated database is that others are copies of."""
    return tmp_path_factory.mktemp("template")


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    """The ports of each kind of store, holding the account ``acme``."""
    if request.param == "memory":
        yield await _with_account(memory_stores())
        return
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres_server")
        async with server.database() as url, opened(url) as database:
            yield await _with_account(sql_stores(database))
        return
    file = tmp_path / "formgate.db"
    await empty_database(request.getfixturevalue("template_folder"), file)
    async with opened(file) as database:
        yield await _with_account(sql_stores(database))


@pytest.fixture(params=["bare", "cached"])
def key_stores(request: pytest.FixtureRequest, stores: Stores) -> Stores:
    """The same, with and without the cache before the keys."""
    return cached(stores) if request.param == "cached" else stores


async def _with_account(stores: Stores) -> Stores:
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account())
    return stores
