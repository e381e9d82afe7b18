"""The Epochs port: what every process reads in the database to follow the others."""

from __future__ import annotations

import pytest

from tests.support.stores import Stores, account


async def raised(stores: Stores, account_id: str = "acme") -> int:
    """Raise an account's epoch and return it."""
    async with stores.registry.transaction() as transaction:
        return await transaction.raise_epoch(account_id)


async def test_epochs_are_told_by_account(stores: Stores) -> None:
    """As they stand now; an account that is not there has none."""
    await raised(stores)
    assert await stores.epochs.of(["acme", "nobody"]) == {"acme": 2}
    assert await stores.epochs.of([]) == {}


async def test_at_first_there_is_only_the_time(stores: Stores) -> None:
    """Who begins to follow has nothing cached: what was before does not concern it."""
    await raised(stores)
    assert (await stores.epochs.since(None)).epochs == {}


async def test_what_changed_since_is_told(stores: Stores) -> None:
    """The newest epoch of each account that changed, asked from where the call before ended; no other account."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("other"))
        await transaction.insert_account(account("quiet"))
    began = (await stores.epochs.since(None)).until
    await raised(stores)
    await raised(stores)
    await raised(stores, "other")
    news = await stores.epochs.since(began)
    assert news.epochs == {"acme": 3, "other": 2}
    assert news.until >= began
    assert (await stores.epochs.since(began)).epochs == {"acme": 3, "other": 2}


async def test_a_change_that_was_undone_is_none(stores: Stores) -> None:
    """Epoch and row are of the change's own transaction."""
    began = (await stores.epochs.since(None)).until

    async def broken_off() -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.raise_epoch("acme")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await broken_off()
    assert (await stores.epochs.since(began)).epochs == {}
    assert await stores.epochs.of(["acme"]) == {"acme": 1}


async def test_old_changes_are_forgotten(stores: Stores) -> None:
    """So many at a time; the epochs themselves stay."""
    began = (await stores.epochs.since(None)).until
    for _ in range(3):
        await raised(stores)
    ahead = began + 3_600 * 1_000_000
    assert await stores.epochs.forget(began - 1, 10) == 0
    assert await stores.epochs.forget(ahead, 2) == 2
    assert await stores.epochs.forget(ahead, 10) == 1
    assert (await stores.epochs.since(began)).epochs == {}
    assert await stores.epochs.of(["acme"]) == {"acme": 4}


async def test_epochs_are_renewed_beyond_all_that_were_forgotten(stores: Stores) -> None:
    """So many accounts at a time, in order; each epoch is told as any other, and above what it was before a restore."""
    for account_id in ("b", "c"):
        async with stores.registry.transaction() as transaction:
            await transaction.insert_account(account(account_id))
    began = (await stores.epochs.since(None)).until
    assert await stores.epochs.renew("", 2) == ["acme", "b"]
    assert await stores.epochs.renew("b", 2) == ["c"]
    assert await stores.epochs.renew("c", 2) == []
    renewed = await stores.epochs.of(["acme", "b", "c"])
    assert all(epoch >= began > 1_000_000 for epoch in renewed.values())
    assert (await stores.epochs.since(began)).epochs == renewed
    await stores.epochs.renew("", 10)
    again = await stores.epochs.of(["acme", "b", "c"])
    assert all(again[account_id] > renewed[account_id] for account_id in renewed)
    assert await raised(stores) == again["acme"] + 1
