from __future__ import annotations

from dataclasses import replace

import pytest

from formgate.rules.grants import Level
from formgate_server.core.model import KeyState, Role
from formgate_server.core.ports import Cursor
from tests.support.stores import Stores, account, add_key, key, member

TEXT = "Zoë 💡 \\ \" ' ; -- \n\t%s {x}"


async def listed(stores: Stores, account_id: str = "acme") -> list[str]:
    """Return the ids of an account's members."""
    return [each.member_id for each in await stores.registry.members(account_id, None, 100)]


async def test_a_member_comes_back_as_it_was(stores: Stores) -> None:
    """Every field, at its extremes, in and outside a transaction."""
    new = member(
        role=Role.GLOBAL_ADMIN,
        permissions=("forms.*", TEXT, "*"),
        level=Level.MANAGE,
        create_time=-1,
        update_time=2**63 - 1,
    )
    async with stores.registry.transaction() as transaction:
        await transaction.put_member(new)
        assert await transaction.member("acme", "ann") == new
    assert await stores.registry.members("acme", None, 10) == [new]


async def test_what_is_put_replaces_what_was_there(stores: Stores) -> None:
    """All of the member of that id in that account, and no other."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        for each in (member("ann"), member("bob"), member("ann", account_id="b")):
            await transaction.put_member(each)
    changed = member("ann", role=Role.ADMIN, permissions=("forms.read",), level=Level.READ, update_time=9)
    async with stores.registry.transaction() as transaction:
        await transaction.put_member(changed)
        assert await transaction.member("acme", "ann") == changed
        assert await transaction.member("acme", "bob") == member("bob")
        assert await transaction.member("b", "ann") == member("ann", account_id="b")


async def test_a_removed_member_is_gone(stores: Stores) -> None:
    """It is read and listed no more, others are; it can come again; to remove what is not there is no error."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        for each in (member("ann"), member("bob"), member("ann", account_id="b")):
            await transaction.put_member(each)
    async with stores.registry.transaction() as transaction:
        await transaction.delete_member("acme", "ann")
        await transaction.delete_member("acme", "x")
        assert await transaction.member("acme", "ann") is None
    assert (await listed(stores), await listed(stores, "b")) == (["bob"], ["ann"])
    async with stores.registry.transaction() as transaction:
        await transaction.put_member(member("ann", role=Role.ADMIN))
    assert await stores.registry.members("acme", None, 10) == [member("ann", role=Role.ADMIN), member("bob")]


async def test_a_change_that_fails_leaves_members_as_they_were(stores: Stores) -> None:
    """None added, changed or removed."""
    async with stores.registry.transaction() as transaction:
        await transaction.put_member(member("ann"))
        await transaction.put_member(member("bob"))

    async def fail() -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.delete_member("acme", "ann")
            await transaction.put_member(member("bob", role=Role.ADMIN))
            await transaction.put_member(member("cid"))
            assert await stores.registry.members("acme", None, 10) == [member("ann"), member("bob")]
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await fail()
    assert await stores.registry.members("acme", None, 10) == [member("ann"), member("bob")]


async def test_pages_of_members(stores: Stores) -> None:
    """An account's members by (create_time, id), each once, whatever the page's size."""
    made = [member(f"m{n:02}", create_time=2_000 + n // 3) for n in range(20)]
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        await transaction.put_member(member("other", account_id="b"))
        for each in reversed(made):
            await transaction.put_member(each)
    pages = []
    after = None
    while page := await stores.registry.members("acme", after, 6):
        assert len(page) <= 6
        pages += page
        after = Cursor(page[-1].create_time, page[-1].member_id)
    assert pages == made
    assert await stores.registry.members("nobody", None, 10) == []


async def test_the_keys_that_a_member_created(stores: Stores) -> None:
    """All of them in that account, by id, whatever their state, with what this transaction changed; not the deleted."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
    made = [key(f"k{n}", state=KeyState(1 + n % 3), create_time=9 - n) for n in range(5)]
    others = [key("x1", created_by="bob"), key("x2", created_by=""), key("x3", account_id="b")]
    for each in reversed([*made, *others]):
        await add_key(stores.registry, each)
    async with stores.registry.transaction() as transaction:
        await transaction.delete_key("k3", 5)
        await transaction.update_key(replace(made[1], display_name="new"))
        expected = [made[0], replace(made[1], display_name="new"), made[2], made[4]]
        assert await transaction.keys_created_by("acme", "ann") == expected
        assert await transaction.keys_created_by("acme", "nobody") == []
