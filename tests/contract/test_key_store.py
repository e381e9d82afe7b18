from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from formgate.rules.grants import Grant, Level
from formgate.rules.reason import Reason
from formgate_server.core.compile_key import compile_key
from formgate_server.core.errors import UnavailableError
from formgate_server.core.model import AccountState, KeyState, Member
from formgate_server.core.verdict import KeyRecord
from tests.support.stores import INHERITING, POLICY, Stores, account, add_key, digest, key, member, stored

FRESH = 2**63 - 1
"""An epoch that no account has: what is returned must have been read after the call began."""


async def test_finds_a_key_by_any_digest(key_stores: Stores) -> None:
    """Of several digests of a secret, under several peppers, one that is stored is enough."""
    await add_key(key_stores.registry, key(), "new")
    for digests in ([digest("new")], [digest("old"), digest("new")], [digest("new"), digest("old"), digest("older")]):
        record = await key_stores.keys.find(digests)
        assert record is not None
        assert record.key == key()


async def test_finds_all_that_a_check_needs(key_stores: Stores) -> None:
    """What is found is the key compiled with its account and its policy."""
    new = key(grants=(Grant("*", ("forms.read",)), Grant("forms/f1", (), Level.READ)), ip_rules=("10.0.0.0/8",))
    await add_key(key_stores.registry, new)
    record = await key_stores.keys.find([digest("k1")])
    assert record is not None
    compiled = compile_key(new, account(), POLICY)
    assert (record.key, record.policy, record.counters, record.epoch) == (new, POLICY, compiled.counters, 1)
    assert record.standing.grants.denial(["forms.read"], Level.UNSPECIFIED, ["forms/f1"]) is None
    assert record.standing.addresses is not None
    assert record.standing.addresses.allow("10.1.2.3")
    assert not record.standing.addresses.allow("11.1.2.3")


def assert_inherits(record: KeyRecord | None, creator: Member | None) -> None:
    """See to it that a key without grants may do what ``creator`` may: nothing without one."""
    assert record is not None
    expected = compile_key(record.key, account(policy="other"), INHERITING, creator).standing
    for rights, wanted in ((record.standing.grants, expected.grants), (record.standing.ceiling, expected.ceiling)):
        assert rights is not None
        assert wanted is not None
        for asked in (["forms.read"], []):
            for level in Level:
                assert rights.denial(asked, level, ["forms/f1"]) == wanted.denial(asked, level, ["forms/f1"])


async def test_what_the_creator_may_is_found_along(key_stores: Stores) -> None:
    """As it is at the epoch of what is found: set, changed, removed, set again."""
    async with key_stores.registry.transaction() as transaction:
        await transaction.update_account(account(policy="other"))
    await add_key(key_stores.registry, key())
    assert_inherits(await key_stores.keys.find([digest("k1")]), None)
    reader, writer = member(level=Level.READ), member(permissions=("*",), level=Level.WRITE)
    for epoch, creator in enumerate((reader, writer, None, reader), start=2):
        async with key_stores.registry.transaction() as transaction:
            if creator is None:
                await transaction.delete_member("acme", "ann")
            else:
                await transaction.put_member(creator)
            await transaction.raise_epoch("acme")
        assert_inherits(await key_stores.keys.find([digest("k1")], at_least=epoch), creator)


async def test_the_creator_is_of_the_keys_account(stores: Stores) -> None:
    """A member of that id in another account gives nothing, nor does any to a key that names no creator."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        await transaction.update_account(account(policy="other"))
        await transaction.put_member(member("ann", account_id="b", level=Level.MANAGE))
        await transaction.put_member(member("bob", level=Level.MANAGE))
    await add_key(stores.registry, key("k1"))
    await add_key(stores.registry, key("k2", created_by=""))
    await add_key(stores.registry, key("k3", created_by="bob"))
    assert_inherits(await stores.keys.find([digest("k1")]), None)
    assert_inherits(await stores.keys.find([digest("k2")]), None)
    assert_inherits(await stores.keys.find([digest("k3")]), member("bob", level=Level.MANAGE))


@pytest.mark.parametrize("unknown", [{"policy": "tomorrows"}, {"plan": "tomorrows"}], ids=["policy", "plan"])
async def test_an_account_of_a_policy_that_only_other_servers_have(key_stores: Stores, unknown: dict[str, str]) -> None:
    """Its keys can not be decided here: that is no fault, and no answer; others are found as ever."""
    await add_key(key_stores.registry, key())
    async with key_stores.registry.transaction() as transaction:
        await transaction.update_account(account(**unknown))
    with pytest.raises(UnavailableError) as refused:
        await key_stores.keys.find([digest("k1")])
    assert refused.value.reason == "POLICY_UNKNOWN"
    assert "tomorrows" in refused.value.message
    assert await key_stores.keys.find([digest("another")]) is None


async def test_unknown_digest(key_stores: Stores) -> None:
    """There is no key: None, at any epoch."""
    await add_key(key_stores.registry, key())
    assert await key_stores.keys.find([digest("nobody")]) is None
    assert await key_stores.keys.find([digest("nobody")], at_least=FRESH) is None


async def test_a_key_is_found_once_it_is_there(key_stores: Stores) -> None:
    """That a digest was unknown is not remembered."""
    assert await key_stores.keys.find([digest("k1")]) is None
    await add_key(key_stores.registry, key())
    assert await key_stores.keys.find([digest("k1")]) is not None


async def test_never_of_a_lower_epoch_than_asked_for(key_stores: Stores) -> None:
    """After a change has been committed, asking for its epoch finds the key as changed."""
    await add_key(key_stores.registry, key())
    for epoch, state in enumerate((KeyState.DISABLED, KeyState.ENABLED, KeyState.REVOKED), start=2):
        await key_stores.keys.find([digest("k1")])
        async with key_stores.registry.transaction() as transaction:
            await transaction.update_key(key(state=state))
            assert await transaction.raise_epoch("acme") == epoch
        record = await key_stores.keys.find([digest("k1")], at_least=epoch)
        assert record is not None
        assert (record.epoch, record.key.state) == (epoch, state)


async def test_reads_anew_for_an_epoch_that_is_not_there(key_stores: Stores) -> None:
    """Asked for more than there is, what is returned was read after the call began."""
    await add_key(key_stores.registry, key())
    await key_stores.keys.find([digest("k1")])
    async with key_stores.registry.transaction() as transaction:
        await transaction.update_account(account(state=AccountState.SUSPENDED, epoch=2))
    record = await key_stores.keys.find([digest("k1")], at_least=FRESH)
    assert record is not None
    assert (record.epoch, record.standing.state) == (2, Reason.ACCOUNT_SUSPENDED)


async def test_what_is_not_committed_is_not_found(key_stores: Stores) -> None:
    """A check never decides by a change that may still be undone."""
    await add_key(key_stores.registry, key())
    async with key_stores.registry.transaction() as transaction:
        await transaction.update_key(key(state=KeyState.REVOKED))
        await transaction.raise_epoch("acme")
        await transaction.insert_key(key("k2"), stored("k2"), "")
        record = await key_stores.keys.find([digest("k1")], at_least=FRESH)
        assert record is not None
        assert (record.epoch, record.key.state) == (1, KeyState.ENABLED)
        assert await key_stores.keys.find([digest("k2")]) is None


async def test_key_and_epoch_are_of_one_moment(key_stores: Stores) -> None:
    """While key and epoch change together, no reader ever sees one of before and one of after."""
    await add_key(key_stores.registry, key(display_name="1"))
    changing = True

    async def change() -> None:
        for epoch in range(2, 20):
            async with key_stores.registry.transaction() as transaction:
                await transaction.update_key(key(display_name=str(epoch)))
                await transaction.raise_epoch("acme")

    async def read(at_least: int) -> None:
        while changing:
            record = await key_stores.keys.find([digest("k1")], at_least=at_least)
            assert record is not None
            assert record.key.display_name == str(record.epoch)
            await asyncio.sleep(0)

    readers = [asyncio.ensure_future(read(at_least)) for at_least in (0, 10, FRESH)]
    await change()
    changing = False
    await asyncio.gather(*readers)


async def test_many_at_once_find_what_is_theirs(key_stores: Stores) -> None:
    """Calls under way together, for the same and for different keys, do not get each other's answers."""
    for number in range(20):
        await add_key(key_stores.registry, key(f"k{number}"))

    async def find(number: int) -> KeyRecord | None:
        return await key_stores.keys.find([digest(f"k{number}")])

    wanted = [number % 25 for number in range(200)]
    found = await asyncio.gather(*map(find, wanted))
    ids = [None if record is None else record.key.key_id for record in found]
    assert ids == [f"k{number}" if number < 20 else None for number in wanted]


async def test_a_record_is_not_changed_afterwards(key_stores: Stores) -> None:
    """What a check holds stays as it was found."""
    await add_key(key_stores.registry, key())
    record = await key_stores.keys.find([digest("k1")])
    assert record is not None
    before = replace(record)
    async with key_stores.registry.transaction() as transaction:
        await transaction.update_key(key(state=KeyState.REVOKED))
        await transaction.raise_epoch("acme")
    await key_stores.keys.find([digest("k1")], at_least=2)
    assert record == before
