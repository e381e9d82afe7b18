"""What accepted records owe, in every store: there from the record's own transaction on, until it is done."""

from __future__ import annotations

import asyncio

from formgate_server.core.ports import KeyHolder, Owed
from tests.support.stores import Stores, account, add_key, entry, key

A_WHILE = 60 * 1_000_000


def owed(record_id: str = "r1", units: int = 3, refund: str = "", account_id: str = "acme") -> Owed:
    """Make what a record owes."""
    return Owed(account_id, record_id, "k1", units, refund)


async def test_accepted_records_owe_what_they_say(stores: Stores) -> None:
    """A charge, a refund or both; a record that wants neither, or a charge of 0, owes nothing."""
    await stores.usage.record(
        [
            entry("r1", charge_units=3),
            entry("r2", refund_request_id="q1"),
            entry("r3", charge_units=4, refund_request_id="q2", account_id="b"),
            entry("r4"),
            entry("r5", charge_units=0),
        ]
    )
    expected = [owed(), owed("r2", 0, "q1"), owed("r3", 4, "q2", "b")]
    assert sorted(await stores.usage.pending(0, 10)) == expected


async def test_only_the_first_of_an_id_owes(stores: Stores) -> None:
    """Neither a duplicate nor a conflict does, in the same call or a later one, before or after it is done."""
    first = entry("r1", "a", charge_units=3)
    await stores.usage.record([first, first, entry("r1", "b", charge_units=5)])
    await stores.usage.record([first, entry("r1", "b", charge_units=5)])
    assert await stores.usage.pending(0, 10) == [owed()]
    await stores.usage.done([owed()])
    await stores.usage.record([first, entry("r1", "b", charge_units=5)])
    assert await stores.usage.pending(0, 10) == []


async def test_what_is_done_is_forgotten(stores: Stores) -> None:
    """And nothing else; done twice is no error, nor is nothing."""
    await stores.usage.record([entry(f"r{number}", charge_units=3) for number in range(3)])
    await stores.usage.record([entry("r1", charge_units=3, account_id="b")])
    await stores.usage.done([owed("r1"), owed("r0")])
    await stores.usage.done([owed("r1")])
    await stores.usage.done([])
    assert sorted(await stores.usage.pending(0, 10)) == [owed("r2"), owed("r1", account_id="b")]


async def test_what_was_taken_is_left_alone_for_a_while(stores: Stores) -> None:
    """So is what is new; and no more is taken than asked for, the oldest first."""
    for number in range(3):
        await stores.usage.record([entry(f"r{number}", charge_units=3)])
        await asyncio.sleep(0.003)  # SQLite's clock has milliseconds
    assert await stores.usage.pending(A_WHILE, 10) == []
    assert await stores.usage.pending(0, 2) == [owed("r0"), owed("r1")]
    await asyncio.sleep(0.003)
    assert await stores.usage.pending(0, 1) == [owed("r2")]
    assert await stores.usage.pending(A_WHILE, 10) == []


async def test_two_who_take_at_once_take_different_ones(stores: Stores) -> None:
    """Each row is given to one of them, and neither waits for the other for ever."""
    await stores.usage.record([entry(f"r{number:03}", charge_units=3) for number in range(100)])
    await asyncio.sleep(0.2)
    taken = await asyncio.gather(*(stores.usage.pending(150_000, 30) for _ in range(4)))
    record_ids = [each.record_id for some in taken for each in some]
    assert len(record_ids) == len(set(record_ids))
    assert record_ids


async def test_the_holders_of_keys(stores: Stores) -> None:
    """Key and account as they are now, revoked or not; of deleted and unknown keys, none."""
    await add_key(stores.registry, key("k1"))
    await add_key(stores.registry, key("k2"))
    async with stores.registry.transaction() as transaction:
        await transaction.delete_key("k2", 5)
    assert await stores.usage.holders({"k1", "k2", "k3"}) == {"k1": KeyHolder(key("k1"), account())}
    assert await stores.usage.holders([]) == {}
