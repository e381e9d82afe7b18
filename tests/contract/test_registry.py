from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from formgate.rules.grants import Grant, Level
from formgate_server.core.errors import AlreadyExistsError
from formgate_server.core.model import (
    AccountState,
    Calendar,
    Environment,
    Holder,
    KeyState,
    Lifetime,
    Limit,
    Period,
    Rolling,
    ServiceRole,
)
from formgate_server.core.ports import Cursor, KeyFilter, Scope
from tests.support.stores import Stores, account, add_key, digest, event, key, stored, token

LARGEST = 2**63 - 1
LIMITS = (
    Limit("rate", Holder.KEY, 0, Rolling(1)),
    Limit("daily", Holder.ACCOUNT, LARGEST, Calendar(Period.DAY)),
    Limit("monthly", Holder.ACCOUNT, None, Calendar(Period.MONTH)),
    Limit("credits", Holder.KEY, 5, Lifetime()),
)
TEXT = "Zoë 💡 \\ \" ' ; -- \n\t%s {x}"


async def test_an_account_comes_back_as_it_was(stores: Stores) -> None:
    """Every field, at its extremes."""
    new = account(
        "b",
        display_name=TEXT,
        policy="other",
        plan="gold",
        state=AccountState.SUSPENDED,
        time_zone="Asia/Kathmandu",
        limits=LIMITS,
        epoch=LARGEST,
        version=LARGEST,
        create_time=-1,
    )
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(new)
        assert await transaction.account("b") == new
    assert await stores.registry.account("b") == new


async def test_a_key_comes_back_as_it_was(stores: Stores) -> None:
    """Every field, at its extremes."""
    new = key(
        display_name=TEXT,
        environment=Environment.TEST,
        state=KeyState.REVOKED,
        created_by="",
        expire_time=253_402_300_799_999_999,
        revoke_time=0,
        last_used_time=1,
        last_used_ip="2001:db8::1",
        grants=tuple(Grant(f"forms/{n}", ("forms.*", "*"), Level(n % 4)) for n in range(1_000)),
        api_groups=("forms", TEXT),
        ip_rules=("10.*.*.1", "2001:db8::/32"),
        limits=LIMITS,
        metadata={TEXT: TEXT, "": ""},
        version=LARGEST,
    )
    await add_key(stores.registry, new)
    assert await stores.registry.key("k1") == new
    async with stores.registry.transaction() as transaction:
        assert await transaction.key("k1") == new


async def test_a_token_comes_back_as_it_was(stores: Stores) -> None:
    """Every field, by id and by any of its secret's digests, in and outside a transaction."""
    new = token(
        display_name=TEXT, role=ServiceRole.AUDITOR, account_id="acme", policy="default", expire_time=5, revoke_time=6
    )
    async with stores.registry.transaction() as transaction:
        await transaction.insert_token(new, digest("t1"), "pepper")
        assert await transaction.token("t1") == new
        assert await transaction.token_of_digest([digest("x"), digest("t1")]) == new
    assert await stores.registry.token_by_digest([digest("t1"), digest("x")]) == new


async def test_a_tokens_digest_is_replaced(stores: Stores) -> None:
    """The token is found by the new one only, also where that is the same; nothing else of it changes."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_token(token(), digest("a"), "pepper")
        await transaction.insert_token(token("t2"), digest("other"), "pepper")
    for _ in range(2):
        async with stores.registry.transaction() as transaction:
            await transaction.replace_token_digest("t1", digest("b"), "newer")
            assert await transaction.token_of_digest([digest("a")]) is None
            assert await transaction.token_of_digest([digest("a"), digest("b")]) == token()
    assert await stores.registry.token_by_digest([digest("a")]) is None
    assert await stores.registry.token_by_digest([digest("b")]) == token()
    assert await stores.registry.token_by_digest([digest("other")]) == token("t2")


async def test_what_is_not_there(stores: Stores) -> None:
    """None, not an error."""
    assert await stores.registry.account("x") is None
    assert await stores.registry.key("x") is None
    assert await stores.registry.token_by_digest([digest("x")]) is None
    async with stores.registry.transaction() as transaction:
        assert await transaction.account("x") is None
        assert await transaction.key("x") is None
        assert await transaction.token("x") is None
        assert await transaction.token_of_digest([digest("x")]) is None
        assert await transaction.key_of_request("acme", "x") is None


async def test_a_change_is_seen_from_within_and_not_from_outside(stores: Stores) -> None:
    """A transaction reads its own writes; others see them when it has ended, all at once."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_key(key(), stored("k1"), "r1")
        await transaction.update_account(account(display_name="new"))
        assert await transaction.key("k1") == key()
        assert await transaction.key_of_request("acme", "r1") == "k1"
        assert await stores.registry.key("k1") is None
        assert await stores.registry.account("acme") == account()
    assert await stores.registry.key("k1") == key()
    assert await stores.registry.account("acme") == account(display_name="new")


async def test_a_change_that_fails_leaves_nothing(stores: Stores) -> None:
    """An exception undoes all of it, the audit row included, and comes out as it is."""
    await add_key(stores.registry, key())

    async def fail() -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.insert_account(account("b"))
            await transaction.insert_key(key("k2"), stored("k2"), "r2")
            await transaction.update_key(key(state=KeyState.REVOKED))
            await transaction.raise_epoch("acme")
            await transaction.insert_token(token(), digest("t1"), "pepper")
            await transaction.audit(event())
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await fail()
    await _assert_untouched(stores)


async def test_a_change_that_is_cancelled_leaves_nothing(stores: Stores) -> None:
    """Cancelled in the middle, all of it is undone, and the next change is not held up."""
    await add_key(stores.registry, key())
    written = asyncio.Event()

    async def hang() -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.insert_account(account("b"))
            await transaction.update_key(key(state=KeyState.REVOKED))
            await transaction.raise_epoch("acme")
            await transaction.audit(event())
            written.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(hang())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await _assert_untouched(stores)


async def _assert_untouched(stores: Stores) -> None:
    assert await stores.registry.account("b") is None
    assert await stores.registry.account("acme") == account()
    assert await stores.registry.key("k1") == key()
    assert await stores.registry.key("k2") is None
    assert await stores.registry.token_by_digest([digest("t1")]) is None
    assert await stores.audit("acme") == []
    async with stores.registry.transaction() as transaction:
        assert await transaction.key_of_request("acme", "r2") is None
        assert await transaction.raise_epoch("acme") == 2


async def test_what_a_transaction_reads_is_locked(stores: Stores) -> None:
    """Changes that read before they write do not undo each other: 20 at once add 20."""

    async def add_one() -> None:
        async with stores.registry.transaction() as transaction:
            before = await transaction.account("acme")
            assert before is not None
            await asyncio.sleep(0)
            await transaction.update_account(replace(before, version=before.version + 1))

    await asyncio.gather(*(add_one() for _ in range(20)))
    after = await stores.registry.account("acme")
    assert after is not None
    assert after.version == 21


async def test_epochs_rise_one_by_one(stores: Stores) -> None:
    """However many raise it at once, each gets an epoch of its own, and no other account's moves."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b", epoch=7))

    async def raise_it() -> int:
        async with stores.registry.transaction() as transaction:
            return await transaction.raise_epoch("acme")

    assert sorted(await asyncio.gather(*(raise_it() for _ in range(10)))) == list(range(2, 12))
    other = await stores.registry.account("b")
    assert other is not None
    assert other.epoch == 7


@pytest.mark.parametrize("taken", ["account", "key", "secret", "request", "token", "token secret"])
async def test_what_is_taken_is_refused(stores: Stores, taken: str) -> None:
    """AlreadyExistsError, in words that tell nothing of the store, and nothing is changed."""
    await add_key(stores.registry, key(), "s1", "r1")
    async with stores.registry.transaction() as transaction:
        await transaction.insert_token(token(), digest("t1"), "pepper")

    async def take() -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.audit(event())
            if taken == "account":
                await transaction.insert_account(account(display_name="thief"))
            elif taken == "token":
                await transaction.insert_token(token(), digest("t2"), "pepper")
            elif taken == "token secret":
                await transaction.insert_token(token("t2"), digest("t1"), "pepper")
            else:
                new = key("k1" if taken == "key" else "k2")
                secret, request = ("s1" if taken == "secret" else "s2"), ("r1" if taken == "request" else "r2")
                await transaction.insert_key(new, stored(secret), request)

    with pytest.raises(AlreadyExistsError) as refused:
        await take()
    assert str(refused.value) == "There is one with this id already."
    assert refused.value.__cause__ is None
    assert await stores.registry.account("acme") == account()
    assert await stores.registry.key("k2") is None
    assert await stores.audit("acme") == []


async def test_a_request_is_remembered_by_account(stores: Stores) -> None:
    """A request_id belongs to its account; keys made without one do not collide."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        await transaction.insert_key(key("k1"), stored("k1"), "r1")
        await transaction.insert_key(key("k2", account_id="b"), stored("k2"), "r1")
        await transaction.insert_key(key("k3"), stored("k3"), "")
        await transaction.insert_key(key("k4"), stored("k4"), "")
    async with stores.registry.transaction() as transaction:
        assert await transaction.key_of_request("acme", "r1") == "k1"
        assert await transaction.key_of_request("b", "r1") == "k2"
        assert await transaction.key_of_request("acme", "") is None


async def test_updates_replace_what_is_there(stores: Stores) -> None:
    """An update writes the thing as given, and no other."""
    async with stores.registry.transaction() as transaction:
        for number in (1, 2):
            await transaction.insert_key(key(f"k{number}"), stored(f"k{number}"), "")
            await transaction.insert_token(token(f"t{number}"), digest(f"t{number}"), "pepper")
    changed = key("k1", state=KeyState.REVOKED, revoke_time=9, grants=(Grant("*", ("*",)),), limits=LIMITS, version=2)
    async with stores.registry.transaction() as transaction:
        await transaction.update_key(changed)
        await transaction.update_token(token("t1", revoke_time=9))
    assert await stores.registry.key("k1") == changed
    assert await stores.registry.key("k2") == key("k2")
    assert await stores.registry.token_by_digest([digest("t1")]) == token("t1", revoke_time=9)
    assert await stores.registry.token_by_digest([digest("t2")]) == token("t2")


async def test_last_use_only_moves_on(stores: Stores) -> None:
    """A later time replaces an earlier one, never the other way; unknown keys are passed over; the version stays."""
    await add_key(stores.registry, key("k1"))
    await add_key(stores.registry, key("k2"))
    await stores.registry.note_used({})
    await stores.registry.note_used({"k1": (50, "1.1.1.1"), "x": (50, "9.9.9.9")})
    await stores.registry.note_used({"k1": (40, "2.2.2.2"), "k2": (60, "")})
    assert await stores.registry.key("k1") == key("k1", last_used_time=50, last_used_ip="1.1.1.1")
    assert await stores.registry.key("k2") == key("k2", last_used_time=60, last_used_ip="")


async def test_an_update_keeps_the_last_use(stores: Stores) -> None:
    """A change that read the key before a use was noted does not undo the note."""
    await add_key(stores.registry, key())
    await stores.registry.note_used({"k1": (50, "1.1.1.1")})
    async with stores.registry.transaction() as transaction:
        await transaction.update_key(key(display_name="new"))
    assert await stores.registry.key("k1") == key(display_name="new", last_used_time=50, last_used_ip="1.1.1.1")


async def test_pages_of_accounts(stores: Stores) -> None:
    """By (create_time, id), each account once, whatever the page's size; within what the caller sees."""
    made = [account(f"a{n:02}", create_time=2_000 + n // 3, policy="other" if n % 2 else "default") for n in range(20)]
    async with stores.registry.transaction() as transaction:
        for each in reversed(made):
            await transaction.insert_account(each)
    expected = [account(), *made]
    listed = []
    after = None
    while page := await stores.registry.accounts(Scope(), after, 4):
        assert len(page) <= 4
        listed += page
        after = Cursor(page[-1].create_time, page[-1].account_id)
    assert listed == expected
    others = [each for each in expected if each.policy == "other"]
    assert await stores.registry.accounts(Scope(policy="other"), None, 100) == others
    assert await stores.registry.accounts(Scope(account_id="a03"), None, 100) == [made[3]]
    assert await stores.registry.accounts(Scope("a03", "other"), None, 100) == [made[3]]
    assert await stores.registry.accounts(Scope("a03", "default"), None, 100) == []
    assert await stores.registry.plans() == {(account.policy, account.plan) for account in made}


async def test_pages_of_keys(stores: Stores) -> None:
    """An account's keys by (create_time, id), each once, and only those that are asked for."""
    made = [
        key(
            f"k{n:02}",
            create_time=2_000 + n // 3,
            state=KeyState(1 + n % 3),
            environment=Environment(1 + n % 2),
            created_by="ann" if n % 4 else "bob",
        )
        for n in range(24)
    ]
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b"))
        await transaction.insert_key(key("other", account_id="b"), stored("other"), "")
        for each in reversed(made):
            await transaction.insert_key(each, stored(each.key_id), "")
    listed = []
    after = None
    while page := await stores.registry.keys(KeyFilter("acme"), after, 5):
        listed += page
        after = Cursor(page[-1].create_time, page[-1].key_id)
    assert listed == made
    wanted = KeyFilter("acme", KeyState.DISABLED, Environment.TEST, "ann")
    expected = [
        each
        for each in made
        if (each.state, each.environment, each.created_by) == (KeyState.DISABLED, Environment.TEST, "ann")
    ]
    assert await stores.registry.keys(wanted, None, 100) == expected != []
    assert await stores.registry.keys(KeyFilter("nobody"), None, 100) == []


async def test_ids_are_ordered_by_code_point(stores: Stores) -> None:
    """Not by a locale's alphabet: a listing goes on where another store would."""
    ids = ["-", ".x", "0", "A", "B", "Z", "_", "a", "aB", "aa", "b"]
    for each in reversed(ids):
        await add_key(stores.registry, key(each))
    assert [each.key_id for each in await stores.registry.keys(KeyFilter("acme"), None, 100)] == ids
    following = await stores.registry.keys(KeyFilter("acme"), Cursor(2_000, "Z"), 2)
    assert [each.key_id for each in following] == ["_", "a"]


async def test_pages_of_tokens(stores: Stores) -> None:
    """By (create_time, id); a bound caller sees those with its own bonds."""
    bonds = [("", ""), ("acme", ""), ("", "default"), ("acme", "default"), ("b", "")]
    made = [token(f"t{n}", create_time=n, account_id=of, policy=policy) for n, (of, policy) in enumerate(bonds)]
    async with stores.registry.transaction() as transaction:
        for each in reversed(made):
            await transaction.insert_token(each, digest(each.token_id), "pepper")
    assert await stores.registry.tokens(Scope(), None, 2) == made[:2]
    assert await stores.registry.tokens(Scope(), Cursor(1, "t1"), 100) == made[2:]
    assert await stores.registry.tokens(Scope(account_id="acme"), None, 100) == [made[1], made[3]]
    assert await stores.registry.tokens(Scope(policy="default"), None, 100) == [made[2], made[3]]
    assert await stores.registry.tokens(Scope("acme", "default"), None, 100) == [made[3]]
