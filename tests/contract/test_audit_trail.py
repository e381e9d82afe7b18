from __future__ import annotations

import asyncio

from formgate_server.core.audit import FIRST, linked
from formgate_server.core.model import AuditEvent
from formgate_server.core.ports import AuditFilter, AuditRow
from tests.support.stores import AUDIT_KEYS, Stores, event

TEXT = "Zoë 💡 \\ \" ' ; -- \n\t%s {x}"
ALL = AuditFilter("acme")


async def add(stores: Stores, *rows: AuditEvent) -> None:
    """Add rows, each by a change of its own."""
    for row in rows:
        async with stores.registry.transaction() as transaction:
            await transaction.audit(row)


async def assert_chained(stores: Stores, account_id: str, count: int) -> None:
    """See to it that each of ``count`` rows, as it is read, is signed along with the one before it."""
    rows = await stores.registry.audit_rows(AuditFilter(account_id), None, 10_000)
    assert [row.sequence for row in rows] == list(range(count, 0, -1))
    previous = FIRST
    for row in reversed(rows):
        message = linked(previous, row.sequence, row.event)
        assert AUDIT_KEYS.verifies(message, row.mac, row.mac_key_id)
        previous = row.mac


async def test_the_audit_trail_is_in_order(stores: Stores) -> None:
    """Rows come back as they were, in the order of the changes, counted by account without gaps."""
    rows = [
        event(action=TEXT, actor="ann", actor_ip="::1", before={"limits": [{"a": None}]}, after={TEXT: [1, 2.5, True]}),
        event(before={}, note=TEXT),
        event(after={}),
    ]
    none = event("", action="CreateServiceToken")
    for row in rows:
        await add(stores, row, none)
    assert await stores.audit("acme") == rows
    assert await stores.audit("") == [none] * 3


async def test_audit_rows_of_changes_at_once(stores: Stores) -> None:
    """However many changes end at once, each row has its own place."""

    async def change(number: int) -> None:
        async with stores.registry.transaction() as transaction:
            await transaction.raise_epoch("acme")
            await transaction.audit(event(note=str(number)))

    await asyncio.gather(*map(change, range(15)))
    assert sorted(int(row.note) for row in await stores.audit("acme")) == list(range(15))
    await assert_chained(stores, "acme", 15)


async def test_each_row_is_chained_to_the_one_before(stores: Stores) -> None:
    """Its MAC is of the row as it is read and of the MAC before it, the first one's of ``FIRST``; by account."""
    await add(
        stores,
        event(actor=TEXT, before={TEXT: [None, 0, -1, 2**70, 1.5, 1e300, True, {"b": {}, "a": []}]}, after={}),
        event("b"),
        event(create_time=0, note=TEXT, after={"z": 1, "a": "\u2028"}),
        event(""),
        event(),
        event("b"),
    )
    await assert_chained(stores, "acme", 3)
    await assert_chained(stores, "b", 2)
    await assert_chained(stores, "", 1)


async def test_rows_of_one_change_are_chained_too(stores: Stores) -> None:
    """A change that writes several rows links them in the order in which it wrote them."""
    async with stores.registry.transaction() as transaction:
        for number in range(3):
            await transaction.audit(event(note=str(number)))
    assert [row.note for row in await stores.audit("acme")] == ["0", "1", "2"]
    await assert_chained(stores, "acme", 3)


async def test_a_change_that_is_undone_leaves_no_gap(stores: Stores) -> None:
    """Neither in the numbers nor in the chain."""
    await add(stores, event())
    try:
        async with stores.registry.transaction() as transaction:
            await transaction.audit(event(note="undone"))
            raise ArithmeticError  # noqa: TRY301 - this is the change that fails
    except ArithmeticError:
        pass
    await add(stores, event())
    await assert_chained(stores, "acme", 2)


async def test_the_same_change_twice_has_two_macs(stores: Stores) -> None:
    """By its place in the chain a row differs from one that says the same."""
    await add(stores, event(), event(), event())
    assert len({row.mac for row in await stores.registry.audit_rows(ALL, None, 10)}) == 3


async def test_pages_of_the_trail(stores: Stores) -> None:
    """Newest first, each row once, whatever the page's size; another account's never."""
    await add(stores, *(event(note=str(number)) for number in range(7)), event("b"))
    listed: list[AuditRow] = []
    while page := await stores.registry.audit_rows(ALL, listed[-1].sequence if listed else None, 3):
        assert len(page) <= 3
        listed += page
    assert [int(row.event.note) for row in listed] == [6, 5, 4, 3, 2, 1, 0]
    assert await stores.registry.audit_rows(ALL, 1, 10) == []
    assert await stores.registry.audit_rows(AuditFilter("nobody"), None, 10) == []


async def test_what_is_listed_of_the_trail(stores: Stores) -> None:
    """What happened to one thing, and when: from ``start`` on, before ``end``, in the order of the changes."""
    times = (50, 10, 30, 20, 40)  # a clock may jump
    await add(
        stores,
        *(event(target=f"keys/k{time % 20}", create_time=time, note=str(time)) for time in times),
    )

    async def notes(wanted: AuditFilter, before: int | None = None, most: int = 10) -> list[int]:
        return [int(row.event.note) for row in await stores.registry.audit_rows(wanted, before, most)]

    assert await notes(ALL) == [40, 20, 30, 10, 50]
    assert await notes(ALL._replace(target="keys/k0")) == [40, 20]
    assert await notes(ALL._replace(target="keys/k")) == []
    assert await notes(ALL._replace(start=20, end=40)) == [20, 30]
    assert await notes(ALL._replace(target="keys/k10", start=11), before=5) == [30, 50]
    assert await notes(ALL._replace(target="keys/k10"), most=1) == [30]
