from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate_server.core.ports import UsageEntry, UsageFilter, UsageSum
from formgate_server.storage import sums
from tests.support.soak import SOAK
from tests.support.stores import Stores, empty_database, entry, memory_stores, opened, sqlite_stores

HOUR = 3_600_000_000
LARGEST = 2**63 - 1
ALL = UsageFilter("acme", "", -(10**18), 10**18)


async def by_tag(stores: Stores, tag: str = "form", wanted: UsageFilter = ALL) -> dict[tuple[int, str], int]:
    """Return the records of each hour and value; AssertionError where one is told twice."""
    found = await stores.usage.sums(wanted, f"tag:{tag}")
    assert len({(each.hour, each.group) for each in found}) == len(found)
    return {(each.hour, each.group): each.records for each in found}


async def record(stores: Stores, first: int, values: list[str], time: int = 0) -> None:
    """Record one unit for each of ``values`` of the tag ``form``, under ids counted from ``first``."""
    numbered = enumerate(values, start=first)
    await stores.usage.record([entry(f"r{number}", time=time, tags={"form": value}) for number, value in numbered])


async def test_nothing_was_used(stores: Stores) -> None:
    """No sums, not even of zero."""
    for group_by in ("", "key", "operation", "tag:form"):
        assert await stores.usage.sums(ALL, group_by) == []


async def test_sums_by_hour_and_group(stores: Stores) -> None:
    """By hour, then group: all together, by key, by operation, each with its units and records."""
    await stores.usage.record(
        [
            entry("r1", units=1, time=HOUR + 5, operation="read"),
            entry("r2", units=2, time=HOUR, operation="export"),
            entry("r3", units=4, time=2 * HOUR - 1, key_id="k2", operation="read"),
            entry("r4", units=8, time=0),
            entry("r5", units=16, time=-1, key_id="k2"),
            entry("r6", units=32, account_id="b"),
        ]
    )
    assert await stores.usage.sums(ALL, "") == [
        UsageSum(-HOUR, "", 16, 1),
        UsageSum(0, "", 8, 1),
        UsageSum(HOUR, "", 7, 3),
    ]
    assert await stores.usage.sums(ALL, "key") == [
        UsageSum(-HOUR, "k2", 16, 1),
        UsageSum(0, "k1", 8, 1),
        UsageSum(HOUR, "k1", 3, 2),
        UsageSum(HOUR, "k2", 4, 1),
    ]
    assert await stores.usage.sums(ALL, "operation") == [
        UsageSum(-HOUR, "", 16, 1),
        UsageSum(0, "", 8, 1),
        UsageSum(HOUR, "export", 2, 1),
        UsageSum(HOUR, "read", 5, 2),
    ]


async def test_of_one_key(stores: Stores) -> None:
    """Asked for a key, only its usage counts, however grouped."""
    await stores.usage.record([entry("r1", units=1, operation="x"), entry("r2", units=2, key_id="k2")])
    wanted = ALL._replace(key_id="k2")
    assert await stores.usage.sums(wanted, "") == [UsageSum(0, "", 2, 1)]
    assert await stores.usage.sums(wanted, "key") == [UsageSum(0, "k2", 2, 1)]
    assert await stores.usage.sums(wanted, "operation") == [UsageSum(0, "", 2, 1)]
    assert await stores.usage.sums(ALL._replace(key_id="k3"), "") == []


@pytest.mark.parametrize("group_by", ["", "key", "operation", "tag:form"])
async def test_hours_of_a_time(stores: Stores, group_by: str) -> None:
    """Those that begin at ``start`` or later, and before ``end``."""
    sent = [entry(f"r{n}", time=n * HOUR + 1, tags={"form": "f1"}) for n in range(6)]
    await stores.usage.record(sent)

    async def hours(start: int, end: int) -> list[int]:
        found = await stores.usage.sums(UsageFilter("acme", "", start, end), group_by)
        return [each.hour // HOUR for each in found]

    assert await hours(2 * HOUR, 4 * HOUR) == [2, 3]
    assert await hours(2 * HOUR + 1, 4 * HOUR + 1) == [3, 4]
    assert await hours(2 * HOUR, 2 * HOUR) == []


async def test_groups_are_in_the_order_of_code_points(stores: Stores) -> None:
    """Not in that of a locale's alphabet."""
    values = ["", "-", "0", "A", "Z", "_", "a", "aB", "aa", "b", "ä", "\uffff", "💡"]
    await stores.usage.record([entry(f"r{n}", operation=v, tags={"form": v}) for n, v in enumerate(reversed(values))])
    for group_by in ("operation", "tag:form"):
        assert [each.group for each in await stores.usage.sums(ALL, group_by)] == values


async def test_a_sum_over_many_does_not_run_over(stores: Stores) -> None:
    """It stays at the largest number there is, and is exact below that."""
    await stores.usage.record(
        [
            entry("r1", units=LARGEST, tags={"form": "f1"}),
            entry("r2", units=LARGEST, key_id="k2", tags={"form": "f1"}),
            entry("r3", units=2**62 + 1, time=HOUR),
            entry("r4", units=2**62 - 3, time=HOUR, key_id="k2"),
        ]
    )
    assert await stores.usage.sums(ALL, "") == [UsageSum(0, "", LARGEST, 2), UsageSum(HOUR, "", 2**63 - 2, 2)]
    assert await stores.usage.sums(ALL, "tag:form") == [UsageSum(0, "f1", LARGEST, 2)]


async def test_sums_by_tag(stores: Stores) -> None:
    """Of each tag that an entry is to be summed by, of all keys; what has no such tag is in none."""
    await stores.usage.record(
        [
            entry("r1", units=1, tags={"form": "f1", "team": "red"}),
            entry("r2", units=2, tags={"form": "f1"}, key_id="k2", operation="x"),
            entry("r3", units=4, tags={"form": ""}, time=HOUR),
            entry("r4", units=8, tags={"form": "f1"}, account_id="b"),
            entry("r5", units=16),
            entry("r6", units=32, tags={"form": "f9"})._replace(summed_tags=()),
        ]
    )
    for wanted in (ALL, ALL._replace(key_id="k2")):
        assert await stores.usage.sums(wanted, "tag:form") == [UsageSum(0, "f1", 3, 2), UsageSum(HOUR, "", 4, 1)]
    assert await stores.usage.sums(ALL, "tag:team") == [UsageSum(0, "red", 1, 1)]
    assert await stores.usage.sums(ALL, "tag:x") == []
    assert await stores.usage.sums(ALL, "tag:") == []


async def test_repeats_and_conflicts_do_not_count_by_tag_either(stores: Stores) -> None:
    """What is not accepted adds to no value, and takes no value's room."""
    await stores.usage.record([entry("r1", "a", tags={"form": "f1"})])
    again = [entry("r1", "a", tags={"form": "f1"}), entry("r1", "b", tags={"form": "f2"})]
    await stores.usage.record([*again, entry("r2", tags={"form": "f1"}), *again])
    assert await by_tag(stores) == {(0, "f1"): 2}


async def test_the_first_thousand_values_of_an_hour(stores: Stores) -> None:
    """Have sums of their own, for all of the hour; all others together are told as ``__other__``."""
    await record(stores, 0, [f"f{n}" for n in range(600)])
    await record(stores, 1_000, [f"f{n}" for n in reversed(range(1_010))])  # its first 400 new ones: f1009 to f610
    found = await by_tag(stores)
    own = {f"f{n}" for n in (*range(600), *range(610, 1_010))}
    assert {value for _, value in found} == own | {"__other__"}
    assert found[0, "__other__"] == 10
    await record(stores, 3_000, ["f5", "f609", "new", "f700"])
    found = await by_tag(stores)
    assert len(found) == 1_001
    assert (found[0, "f5"], found[0, "f700"], found[0, "__other__"]) == (3, 2, 12)


async def test_each_hour_tag_and_account_has_a_thousand(stores: Stores) -> None:
    """That one is full leaves the others their room."""
    await record(stores, 0, [f"f{n}" for n in range(1_001)])
    await stores.usage.record(
        [
            entry("s1", time=HOUR, tags={"form": "new"}),
            entry("s2", tags={"team": "new", "form": "new"}),
            entry("s3", account_id="b", tags={"form": "new"}),
        ]
    )
    found = await by_tag(stores)
    assert (found[0, "__other__"], found[HOUR, "new"], (0, "new") in found) == (2, 1, False)
    assert await by_tag(stores, "team") == {(0, "new"): 1}
    assert await by_tag(stores, "form", ALL._replace(account_id="b")) == {(0, "new"): 1}


async def test_a_value_named_like_the_others(stores: Stores) -> None:
    """Counts along with them, and takes no room."""
    await record(stores, 0, ["__other__", *(f"f{n}" for n in range(1_000)), "one more"])
    found = await by_tag(stores)
    assert len(found) == 1_001
    assert found[0, "__other__"] == 2


async def test_a_call_that_reaches_over_many_hours(stores: Stores) -> None:
    """Late records of five weeks: each lands in its own hour, by its value."""
    sent = [entry(f"r{n}", time=n % 840 * HOUR, tags={"form": f"f{n}", "team": f"t{n % 3}"}) for n in range(1_000)]
    await stores.usage.record(sent)
    assert await by_tag(stores) == {(n % 840 * HOUR, f"f{n}"): 1 for n in range(1_000)}
    teams = await by_tag(stores, "team")
    assert sum(teams.values()) == 1_000
    assert teams[0, "t0"] == 2  # records 0 and 840


async def test_values_of_calls_at_once(stores: Stores) -> None:
    """However many come together, no more than 1,000 values have sums of their own, and no record is lost."""
    calls = [
        record(stores, call * 100, [f"f{call}-{n}" if n % 2 else f"f{n}" for n in range(100)]) for call in range(25)
    ]
    await asyncio.gather(*calls)
    found = await by_tag(stores)
    assert len(found) == 1_001
    assert sum(found.values()) == 2_500


TAGS = st.dictionaries(st.sampled_from(["form", "team"]), st.sampled_from(["a", "b", "c", "d", "__other__"]))
RECORDS = st.builds(
    entry,
    record_id=st.sampled_from(["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8"]),
    account_id=st.sampled_from(["acme", "b"]),
    time=st.sampled_from([-1, 0, 1, HOUR]),
    key_id=st.sampled_from(["k1", "k2"]),
    operation=st.sampled_from(["", "x"]),
    units=st.sampled_from([0, 1, 10, LARGEST - 5, LARGEST]),
    tags=TAGS,
)
EXAMPLES = 40 * (20 if SOAK else 1)


@settings(max_examples=EXAMPLES, deadline=None, derandomize=EXAMPLES == 40)
@given(st.lists(st.lists(RECORDS, max_size=8), max_size=5))
def test_every_store_sums_alike(template_folder: Path, history: list[list[UsageEntry]]) -> None:
    """Over any history of calls, by every group, with room for two values only."""

    async def play(stores: Stores) -> Mapping[tuple[UsageFilter, str], list[UsageSum]]:
        for entries in history:
            await stores.usage.record(entries)
        filters = [ALL, ALL._replace(key_id="k2"), ALL._replace(account_id="b", start=0)]
        groups = ("", "key", "operation", "tag:form", "tag:team")
        return {(wanted, group): await stores.usage.sums(wanted, group) for wanted in filters for group in groups}

    async def compare(file: Path) -> None:
        await empty_database(template_folder, file)
        async with opened(file) as database:
            assert await play(sqlite_stores(database)) == await play(memory_stores())

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sums, "_MOST_VALUES", 2)
        asyncio.run(compare(Path(folder) / "formgate.db"))
