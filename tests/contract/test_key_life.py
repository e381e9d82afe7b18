"""Rotation, recovery and deletion."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from formgate_server.core.errors import AlreadyExistsError
from formgate_server.core.model import KeyState
from formgate_server.core.ports import KeyFilter, KeyOwner, Sealed
from formgate_server.core.verdict import KeyRecord
from formgate_server.storage.sql.tables import secrets
from tests.support.stores import (
    Stores,
    account,
    add_key,
    digest,
    empty_database,
    key,
    opened,
    sealed,
    sqlite_stores,
    stored,
)

FRESH = 2**63 - 1


async def find(stores: Stores, secret: str) -> KeyRecord | None:
    """Return what a check finds by now."""
    return await stores.keys.find([digest(secret)], at_least=FRESH)


async def ends(stores: Stores, *words: str) -> list[int | None]:
    """Return when each of these secrets of the key ``k1`` ends."""
    found = [await find(stores, word) for word in words]
    assert all(record is not None and record.key.key_id == "k1" for record in found)
    return [record.secret_end for record in found if record is not None]


async def rotate(stores: Stores, secret: str, until: int, *, recoverable: bool = False) -> None:
    """Give the key ``k1`` a new secret."""
    async with stores.registry.transaction() as transaction:
        await transaction.replace_secret("k1", stored(secret, recoverable=recoverable), until)


async def delete(stores: Stores, key_id: str = "k1") -> None:
    """Delete a key."""
    async with stores.registry.transaction() as transaction:
        await transaction.delete_key(key_id, 5)


async def shown(stores: Stores) -> Sealed | None:
    """Return the sealed secret of the key ``k1``."""
    async with stores.registry.transaction() as transaction:
        return await transaction.sealed_secret("k1")


# ------------------------------------------------------------------------------------------------------------ rotation


async def test_a_secret_has_no_end_until_it_is_replaced(key_stores: Stores) -> None:
    """Then both find the key, the old one with its end, the new one without."""
    await add_key(key_stores.registry, key(), "s1")
    assert await ends(key_stores, "s1") == [None]
    await rotate(key_stores, "s2", 700)
    assert await ends(key_stores, "s1", "s2") == [700, None]


async def test_no_secret_but_the_newest_outlives_a_rotation(stores: Stores) -> None:
    """All older ones end with it; one that would have ended sooner still does, and another key's gets no end."""
    await add_key(stores.registry, key(), "s1")
    await add_key(stores.registry, key("k2"), "other")
    expected = {"s2": [700, None], "s3": [300, 300, None], "s4": [300, 300, 500, None], "s5": [5, 5, 5, 5, None]}
    for (secret, then), until in zip(expected.items(), (700, 300, 500, 5), strict=True):
        await rotate(stores, secret, until)
        assert await ends(stores, *("s1", "s2", "s3", "s4", "s5")[: len(then)]) == then
    other = await find(stores, "other")
    assert other is not None
    assert other.secret_end is None


async def test_a_rotation_that_is_undone_ends_nothing(stores: Stores) -> None:
    """A secret that is taken, also by the key itself, is refused, and those that were there stay without an end."""
    await add_key(stores.registry, key(), "s1")
    await add_key(stores.registry, key("k2"), "s2")
    for taken in ("s1", "s2"):
        with pytest.raises(AlreadyExistsError):
            await rotate(stores, taken, 700)
    assert await ends(stores, "s1") == [None]


async def test_a_rotation_changes_nothing_else(stores: Stores) -> None:
    """The key is what it was, its request is remembered."""
    await add_key(stores.registry, key(), "s1", "r1")
    await rotate(stores, "s2", 700)
    assert await stores.registry.key("k1") == key()
    async with stores.registry.transaction() as transaction:
        assert await transaction.key_of_request("acme", "r1") == "k1"


# ------------------------------------------------------------------------------------------------------------ recovery


async def test_the_newest_secret_is_shown(stores: Stores) -> None:
    """As it was sealed, in the transaction that wrote it and in later ones; never another key's."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_key(key("k2"), stored("other", recoverable=True), "")
        await transaction.insert_key(key(), stored("s1", recoverable=True), "")
        assert await transaction.sealed_secret("k1") == sealed("s1")
        await transaction.replace_secret("k1", stored("s2", recoverable=True), 700)
        assert await transaction.sealed_secret("k1") == sealed("s2")
    assert await shown(stores) == sealed("s2")


async def test_an_older_secret_is_never_shown_for_the_newest(stores: Stores) -> None:
    """Where the newest was not sealed, there is none to show; a later one may be."""
    async with stores.registry.transaction() as transaction:
        assert await transaction.sealed_secret("k1") is None
        await transaction.insert_key(key(), stored("s1", recoverable=True), "")
    await rotate(stores, "s2", 700)
    assert await shown(stores) is None
    await rotate(stores, "s3", 700, recoverable=True)
    assert await shown(stores) == sealed("s3")


async def test_no_box_is_kept_that_nobody_may_open(tmp_path: Path, template_folder: Path) -> None:
    """Once a secret is replaced, or its key deleted, the database holds it in no form that could be decrypted."""
    file = tmp_path / "formgate.db"
    await empty_database(template_folder, file)

    async def boxes() -> list[bytes]:
        async with database.reading() as connection:
            return list((await connection.execute(select(secrets.c.sealed))).scalars())

    async with opened(file) as database:
        stores = sqlite_stores(database)
        async with stores.registry.transaction() as transaction:
            await transaction.insert_account(account())
            await transaction.insert_key(key(), stored("s1", recoverable=True), "")
        await rotate(stores, "s2", 700, recoverable=True)
        assert sorted(await boxes(), key=bool) == [None, sealed("s2").box]
        await delete(stores)
        assert await boxes() == [None, None]


# ------------------------------------------------------------------------------------------------------------ deletion


async def test_a_deleted_key_is_not_found(stores: Stores) -> None:
    """By any of its secrets, by its id, in no listing, from the end of the change on; others are."""
    await add_key(stores.registry, key(), "s1")
    await rotate(stores, "s2", 700)
    await add_key(stores.registry, key("k2"))
    async with stores.registry.transaction() as transaction:
        await transaction.delete_key("k1", 5)
        assert await transaction.key("k1") is None
        assert await transaction.sealed_secret("k1") is None
        assert await transaction.keys_created_by("acme", "ann") == [key("k2")]
        assert await find(stores, "s1") is not None
    assert await find(stores, "s1") is None
    assert await find(stores, "s2") is None
    assert await find(stores, "k2") is not None
    assert await stores.registry.key("k1") is None
    assert await stores.registry.keys(KeyFilter("acme"), None, 10) == [key("k2")]


async def test_whose_a_deleted_key_was(stores: Stores) -> None:
    """Its owner is told, so that usage which comes late still counts."""
    await add_key(stores.registry, key())
    await delete(stores)
    assert await stores.usage.owners(["k1"]) == {"k1": KeyOwner("acme", "default")}


async def test_a_deletion_that_is_undone(stores: Stores) -> None:
    """The key is found as before, by its secret too, and can be shown."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_key(key(), stored("k1", recoverable=True), "")

    async def fail() -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.delete_key("k1", 5)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await fail()
    assert await stores.registry.key("k1") == key()
    assert await ends(stores, "k1") == [None]
    assert await shown(stores) == sealed("k1")


@pytest.mark.parametrize("taken", ["key", "secret", "request"])
async def test_what_a_deleted_key_had_stays_taken(stores: Stores, taken: str) -> None:
    """Its id and secret are nobody else's ever; its request, repeated, makes no second key."""
    await add_key(stores.registry, key(), "s1", "r1")
    await delete(stores)
    new = key("k1" if taken == "key" else "k2")
    secret, request = ("s1" if taken == "secret" else "s2"), ("r1" if taken == "request" else "r2")
    with pytest.raises(AlreadyExistsError):
        await add_key(stores.registry, new, secret, request)
    async with stores.registry.transaction() as transaction:
        assert await transaction.key_of_request("acme", "r1") == "k1"


async def test_a_use_noted_late_brings_nothing_back(stores: Stores) -> None:
    """That a key was used before it was deleted may be written after."""
    await add_key(stores.registry, key())
    await delete(stores)
    await stores.registry.note_used({"k1": (50, "1.1.1.1")})
    assert await stores.registry.key("k1") is None


async def test_how_many_keys_an_account_has(stores: Stores) -> None:
    """Those that are enabled or disabled; what this transaction changed is counted as changed."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        assert await transaction.count_keys("acme") == 0
    await add_key(stores.registry, key("other", account_id="b"))
    for number, state in enumerate((KeyState.ENABLED, KeyState.DISABLED, KeyState.REVOKED) * 2):
        await add_key(stores.registry, key(f"k{number}", state=state))
    async with stores.registry.transaction() as transaction:
        assert await transaction.count_keys("acme") == 4
        await transaction.delete_key("k0", 5)
        await transaction.delete_key("k2", 5)
        assert await transaction.count_keys("acme") == 3
        await transaction.update_key(key("k1", state=KeyState.REVOKED))
        await transaction.insert_key(key("k9"), stored("k9"), "")
        assert await transaction.count_keys("acme") == 3
        assert await transaction.count_keys("b") == 1
