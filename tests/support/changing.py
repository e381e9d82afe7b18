"""Changes of several rows, and cutting them off: what must hold of any database, whatever happens to it."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

from formgate_server.storage.sql.engine import Database
from tests.support.stores import account, add_key, digest, entry, event, key, sql_stores

AWAY = "The database does not answer."


async def fill(database: Database) -> None:
    """Add the account ``acme`` with the key ``k1``, whose name is the account's epoch."""
    registry = sql_stores(database).registry
    async with registry.transaction() as transaction:
        await transaction.insert_account(account())
    await add_key(registry, key(display_name="1"))


async def change(database: Database) -> int:
    """Make a change of several rows, and return the epoch."""
    async with sql_stores(database).registry.transaction() as transaction:
        epoch = await transaction.raise_epoch("acme")
        await transaction.update_key(key(display_name=str(epoch)))
        await transaction.audit(event(note=str(epoch)))
    return epoch


async def epoch_of(database: Database) -> int:
    """Return the epoch; AssertionError where a change was done by half."""
    stores = sql_stores(database)
    record = await stores.keys.find([digest("k1")])
    assert record is not None
    assert record.key.display_name == str(record.epoch)
    assert [int(row.note) for row in await stores.audit("acme")] == list(range(2, record.epoch + 1))
    return record.epoch


async def all_ways(database: Database) -> list[Any]:
    """Use the database in each way there is."""
    stores = sql_stores(database)
    calls: list[Coroutine[Any, Any, object]] = [
        change(database),
        stores.registry.account("acme"),
        stores.keys.find([digest("k1")]),
        stores.usage.record([entry("r1")]),
        stores.reservations.load(["a"]),
    ]
    return list(await asyncio.gather(*calls, return_exceptions=True))


@types.coroutine
def cancelled_at(step: int, work: Coroutine[Any, Any, object], times: int = 1) -> Generator[Any, Any, bool]:
    """Run ``work``, cancelled where it waits for the ``step``-th time and from there on; tell if it came so far."""
    waited_for = None
    try:
        for _ in range(step):
            yield work.send(None)
        waited_for = work.send(None)
        for _ in range(times):
            if waited_for is not None:
                waited_for.cancel()
            waited_for = work.throw(asyncio.CancelledError())
        while True:
            yield waited_for
            waited_for = work.send(None)
    except StopIteration:
        return False
    except asyncio.CancelledError:
        return True
