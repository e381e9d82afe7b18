from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyOwner, UsageEntry
from tests.support.soak import SOAK
from tests.support.stores import (
    Hours,
    Stores,
    account,
    add_key,
    empty_database,
    entry,
    key,
    memory_stores,
    opened,
    sqlite_stores,
)

ACCEPTED, DUPLICATE, CONFLICT = UsageOutcome.ACCEPTED, UsageOutcome.DUPLICATE, UsageOutcome.CONFLICT
HOUR = 3_600_000_000
LARGEST = 2**63 - 1


async def test_a_record_counts_once(stores: Stores) -> None:
    """The same again is a DUPLICATE, the same id with other content a CONFLICT; neither counts."""
    assert await stores.usage.record([entry("r1", "a", units=5)]) == [ACCEPTED]
    assert await stores.usage.record([entry("r1", "a", units=5)]) == [DUPLICATE]
    assert await stores.usage.record([entry("r1", "b", units=7)]) == [CONFLICT]
    assert await stores.usage.record([entry("r1", "a", units=5)]) == [DUPLICATE]
    assert await stores.hours() == {("acme", "k1", 0, ""): (5, 1)}


async def test_records_of_one_call_are_compared_too(stores: Stores) -> None:
    """In order: the first counts, those after it are compared with it; the very same object is no exception."""
    first = entry("r1", "a")
    sent = [first, entry("r1", "b"), entry("r2", "c"), first, entry("r1", "a")]
    assert await stores.usage.record(sent) == [ACCEPTED, CONFLICT, ACCEPTED, DUPLICATE, DUPLICATE]
    assert await stores.usage.record([entry("r1", "b"), first, first]) == [CONFLICT, DUPLICATE, DUPLICATE]
    assert await stores.hours() == {("acme", "k1", 0, ""): (2, 2)}


async def test_a_record_id_belongs_to_its_account(stores: Stores) -> None:
    """The same id of another account is another record."""
    sent = [entry("r1", "a"), entry("r1", "b", account_id="b")]
    assert await stores.usage.record(sent) == [ACCEPTED, ACCEPTED]


async def test_nothing_to_record(stores: Stores) -> None:
    """No records, no outcomes."""
    assert await stores.usage.record([]) == []
    assert await stores.hours() == {}


async def test_sums_by_the_hour_in_which_it_happened(stores: Stores) -> None:
    """By key, operation and hour of occurrence, whenever the record comes; an hour has its first microsecond."""
    ten = 10 * HOUR
    await stores.usage.record([entry("r1", time=ten + 5, units=1), entry("r2", time=ten, units=2)])
    await stores.usage.record([entry("r3", time=ten - 1, units=4), entry("r4", time=ten + HOUR, units=8)])
    await stores.usage.record([entry("r5", time=ten + HOUR - 1, units=16, operation="export")])
    await stores.usage.record([entry("r6", time=ten + 7, units=32), entry("r7", time=ten, units=64, key_id="k2")])
    assert await stores.hours() == {
        ("acme", "k1", ten, ""): (35, 3),
        ("acme", "k1", ten - HOUR, ""): (4, 1),
        ("acme", "k1", ten + HOUR, ""): (8, 1),
        ("acme", "k1", ten, "export"): (16, 1),
        ("acme", "k2", ten, ""): (64, 1),
    }


async def test_a_sum_does_not_run_over(stores: Stores) -> None:
    """It stays at the largest number there is, within one call and over several."""
    await stores.usage.record([entry("r1", units=LARGEST), entry("r2", units=LARGEST)])
    await stores.usage.record([entry("r3", units=5, operation="x")])
    await stores.usage.record([entry("r4", units=LARGEST - 5, operation="x"), entry("r5", units=0, operation="x")])
    await stores.usage.record([entry("r6", units=1, operation="x")])
    assert await stores.hours() == {("acme", "k1", 0, ""): (LARGEST, 2), ("acme", "k1", 0, "x"): (LARGEST, 4)}


async def test_the_same_from_two_callers_at_once(stores: Stores) -> None:
    """Sent by several at the same time, each record counts once and each caller gets an answer."""
    sent = [entry(f"r{number}") for number in range(50)]
    batches = [sent, list(reversed(sent)), sent[10:], sent[:40]]
    answers = await asyncio.gather(*map(stores.usage.record, batches))
    outcomes = [outcome for answer in answers for outcome in answer]
    assert outcomes.count(ACCEPTED) == 50
    assert outcomes.count(DUPLICATE) == len(outcomes) - 50
    assert await stores.hours() == {("acme", "k1", 0, ""): (50, 50)}


async def test_as_many_as_a_call_may_hold(stores: Stores) -> None:
    """1,000 records, half of them there already, with all that a record can say."""
    full = [
        saying(
            entry(f"r{number}"),
            resource="forms/f1",
            status_code=200,
            latency=LARGEST,
            occur_time=-5,
            tags={"Zoë": "💡"},
            charge_units=0,
            refund_request_id="q",
        )
        for number in range(1_000)
    ]
    assert await stores.usage.record(full[:500]) == [ACCEPTED] * 500
    assert await stores.usage.record(full) == [DUPLICATE] * 500 + [ACCEPTED] * 500
    assert await stores.hours() == {("acme", "k1", 0, ""): (1_000, 1_000)}


def saying(whole: UsageEntry, **changes: object) -> UsageEntry:
    """Change what an entry's record says."""
    return whole._replace(record=replace(whole.record, **changes))  # type: ignore[arg-type]


async def test_whose_keys_are(stores: Stores) -> None:
    """Account and policy of each key that there is, revoked or not."""
    async with stores.registry.transaction() as transaction:
        await transaction.insert_account(account("b", policy="other"))
    await add_key(stores.registry, key("k1"))
    await add_key(stores.registry, key("k2", account_id="b"))
    found = await stores.usage.owners({"k1", "k2", "x", *(f"unknown-{number}" for number in range(1_500))})
    assert found == {"k1": KeyOwner("acme", "default"), "k2": KeyOwner("b", "other")}
    assert await stores.usage.owners([]) == {}


RECORDS = st.builds(
    entry,
    record_id=st.sampled_from(["r1", "r2", "r3", "r4"]),
    content=st.sampled_from(["a", "b"]),
    account_id=st.sampled_from(["acme", "b"]),
    time=st.sampled_from([-1, 0, 1, HOUR - 1, HOUR, 5 * HOUR]),
    key_id=st.sampled_from(["k1", "k2"]),
    operation=st.sampled_from(["", "x"]),
    units=st.sampled_from([0, 1, 10, LARGEST]),
)
EXAMPLES = 40 * (20 if SOAK else 1)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 40)
@given(st.lists(st.lists(RECORDS, max_size=6), max_size=5))
def test_every_store_counts_alike(template_folder: Path, history: list[list[UsageEntry]]) -> None:
    """Over any history of calls, with repeats, conflicts and late records: the same outcomes and the same sums."""

    async def play(stores: Stores) -> tuple[list[list[UsageOutcome]], Hours]:
        return [await stores.usage.record(entries) for entries in history], await stores.hours()

    async def compare(file: Path) -> None:
        await empty_database(template_folder, file)
        async with opened(file) as database:
            assert await play(sqlite_stores(database)) == await play(memory_stores())

    with TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder) / "formgate.db"))
