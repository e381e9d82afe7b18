"""Old usage goes, in every store: by when it happened, a few rows at a time, and nothing else."""

from __future__ import annotations

from formgate_server.core.ports import UsageFilter
from tests.support.stores import Stores, entry

HOUR = 3_600_000_000


async def test_records_go_by_when_they_happened(stores: Stores) -> None:
    """At most so many at a time, those from before; their sums stay, and what is resent then counts again."""
    sent = [entry(f"r{number}", time=number * HOUR) for number in range(10)]
    await stores.usage.record(sent)
    sums = await stores.hours()
    assert await stores.usage.count_old(5 * HOUR, 0) == (5, 0)
    assert await stores.usage.forget_records(5 * HOUR, 3) == 3
    assert await stores.usage.forget_records(5 * HOUR, 3) == 2
    assert await stores.usage.forget_records(5 * HOUR, 3) == 0
    assert await stores.hours() == sums
    outcomes = await stores.usage.record(sent)
    assert [outcome.name for outcome in outcomes] == ["ACCEPTED"] * 5 + ["DUPLICATE"] * 5


async def test_sums_go_by_their_hour(stores: Stores) -> None:
    """Those of tags too, as many as were counted; records and what they owe stay."""
    sent = [entry(f"r{number}", time=number * HOUR, tags={"form": "f1"}, charge_units=1) for number in range(6)]
    await stores.usage.record(sent)
    _, counted = await stores.usage.count_old(0, 4 * HOUR)
    assert counted >= 8
    gone = 0
    while deleted := await stores.usage.forget_sums(4 * HOUR, 100):
        gone += deleted
    assert gone == counted
    for group_by in ("", "tag:form"):
        found = await stores.usage.sums(UsageFilter("acme", "", 0, 100 * HOUR), group_by)
        assert [each.hour for each in found] == [4 * HOUR, 5 * HOUR]
    assert (await stores.usage.count_old(10 * HOUR, 4 * HOUR)) == (6, 0)
    assert len(await stores.usage.pending(0, 10)) == 6


async def test_sums_go_a_few_at_a_time(stores: Stores) -> None:
    """No transaction deletes more than it was told to."""
    await stores.usage.record([entry(f"r{number}", operation=f"o{number}") for number in range(10)])
    assert [await stores.usage.forget_sums(HOUR, 4) for _ in range(4)] == [4, 4, 2, 0]
    assert await stores.hours() == {}
