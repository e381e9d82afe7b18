"""PostgreSQL that waits for a standby: a commit takes as long as that is away, however long that is."""

from __future__ import annotations

import asyncio

import pytest

from formgate_server.core.errors import UnavailableError
from formgate_server.storage.sql import epochs, postgres
from formgate_server.storage.sql.engine import Database
from tests.support.changing import change, epoch_of, fill
from tests.support.postgres import FOLLOWED, PostgresServer
from tests.support.stores import opened, sql_stores


async def changed(database: Database) -> None:
    """Return when the change is seen."""
    async with asyncio.timeout(10):
        while await epoch_of(database) == 1:  # noqa: ASYNC110 - it is PostgreSQL that is waited for
            await asyncio.sleep(0.05)


async def test_a_change_whose_commit_waited_for_a_standby_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it was told UNAVAILABLE and publishes nothing, so it is told by ``since``, however late it is seen.

    PostgreSQL shows it when the standby has come back, or nobody asks for one any more: by then its time is long over.
    """
    monkeypatch.setattr(postgres, "_CALL_SECONDS", 0.5)
    monkeypatch.setattr(epochs, "_OVERLAP", 0)  # nobody waits for a minute here
    with PostgresServer(*FOLLOWED) as server:
        async with server.database() as url, opened(url) as database:
            await fill(database)
            following = sql_stores(database).epochs
            until = (await following.since(None)).until
            await server.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
            await server.execute("SELECT pg_reload_conf()")
            with pytest.raises(UnavailableError):
                await change(database)
            for _ in range(3):
                news = await following.since(until)
                assert news.epochs == {}  # nobody sees it yet
                until = news.until
            await server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await server.execute("SELECT pg_reload_conf()")
            await changed(database)
            assert (await following.since(until)).epochs == {"acme": 2}
