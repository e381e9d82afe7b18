"""Limits, usage, and the audit trail as they are read."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from formgate_server.core.errors import InvalidArgumentError, NotFoundError
from formgate_server.core.model import Holder, Limit, Rolling, UsageOutcome, UsageRecord
from formgate_server.core.ports import AuditFilter
from formgate_server.core.read_account import UsageQuery
from tests.support.clock import DAY, HOUR, MINUTE
from tests.unit.core.world import CALLER, World


def at(text: str, zone: str = "UTC") -> int:
    """Return an instant, given as local time."""
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1_000_000)


async def record(world: World, key_id: str, *uses: tuple[int, int]) -> None:
    """Record units at times."""
    records = [
        UsageRecord(record_id=f"{key_id}-{number}", key_id=key_id, units=units, operation="o", occur_time=when)
        for number, (when, units) in enumerate(uses)
    ]
    assert {result.outcome for result in await world.record(CALLER, records)} == {UsageOutcome.ACCEPTED}


async def test_limits() -> None:
    """An account's limits are what it holds; a key's are all that it is charged by; nothing is charged by looking."""
    world = World()
    await world.account(policy="jotform")
    key, secret = await world.key(limits=(Limit("rate", Holder.KEY, 5, Rolling(HOUR)),))
    await world.check(secret, cost=2)
    for _ in range(2):
        of_account = await world.read.limits(CALLER, "acme", "")
        of_key = await world.read.limits(CALLER, "", key.key_id)
        assert [(each.limit.name, each.remaining) for each in of_account] == [("daily", 998)]
        assert [(each.limit.name, each.remaining) for each in of_key] == [("daily", 998), ("rate", 3)]
    await world.account("other")
    with pytest.raises(InvalidArgumentError):
        await world.read.limits(CALLER, "other", key.key_id)
    with pytest.raises(NotFoundError):
        await world.read.limits(CALLER, "", "nokey")


@pytest.mark.parametrize(("local", "hours"), [("2026-03-08", 23), ("2026-11-01", 25), ("2026-06-01", 24)])
async def test_days_of_23_and_25_hours(local: str, hours: int) -> None:
    """A day is the account's: from its first instant to that of the next, also where the clocks change."""
    world = World()
    zone = "America/New_York"
    await world.account(time_zone=zone)
    key, _ = await world.key()
    start = at(f"{local}T00:00", zone)
    world.clock.time = start + 3 * DAY
    await record(world, key.key_id, *[(start + hour * HOUR, 1) for hour in range(-1, hours + 1)])
    query = UsageQuery("acme", start=start - DAY, end=start + 2 * DAY, daily=True)
    told = await world.read.usage(CALLER, query)
    assert [bucket.units for bucket in told] == [1, hours, 1]
    assert [bucket.start for bucket in told][1:] == [start, start + hours * HOUR]
    by_hour = await world.read.usage(CALLER, query._replace(daily=False))
    assert [bucket.units for bucket in by_hour] == [1] * (hours + 2)
    assert all(datetime.fromtimestamp(bucket.start / 1e6, UTC).minute == 0 for bucket in by_hour)


async def test_groups() -> None:
    """Sums by key, by operation, and together; of one key, or all."""
    world = World()
    await world.account()
    keys = [(await world.key())[0].key_id for _ in range(2)]
    now = world.clock.time
    await record(world, keys[0], (now, 3), (now - MINUTE, 4))
    await record(world, keys[1], (now, 5))
    query = UsageQuery("acme", start=now - DAY, end=now + HOUR, daily=True)

    async def told(**changes: str) -> dict[str, tuple[int, int]]:
        buckets = await world.read.usage(CALLER, query._replace(**changes))  # type: ignore[arg-type]
        return {bucket.group: (bucket.units, bucket.records) for bucket in buckets}

    assert await told() == {"": (12, 3)}
    assert await told(group_by="key") == {keys[0]: (7, 2), keys[1]: (5, 1)}
    assert await told(group_by="operation", key_id=keys[1]) == {"o": (5, 1)}
    assert await told(key_id=keys[0]) == {"": (7, 2)}
    assert await told(key_id="nokey") == {}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"start": None}, "start_time"),
        ({"end": 0}, "end_time"),
        ({"start": 1, "end": 1}, "end_time"),
        ({"start": 0, "end": 400 * DAY + 1}, "end_time"),
        ({"group_by": "tag:x"}, "group_by"),
        ({"group_by": "units"}, "group_by"),
        ({"key_id": "a b"}, "key_id"),
        ({"account_id": ""}, "account_id"),
    ],
)
async def test_what_usage_can_not_be_asked(changes: dict[str, object], field: str) -> None:
    """What is missing or none is named."""
    world = World()
    await world.account()
    with pytest.raises(InvalidArgumentError) as refused:
        await world.read.usage(CALLER, UsageQuery("acme", start=0, end=DAY)._replace(**changes))  # type: ignore[arg-type]
    assert refused.value.field == field


async def test_the_audit_trail_by_pages() -> None:
    """Newest first, each once, however long a page is; a page token belongs to its listing."""
    world = World()
    await world.account()
    keys = [(await world.key())[0].key_id for _ in range(5)]
    wanted = AuditFilter("acme")
    told, token = [], ""
    while True:
        page = await world.read.audit(CALLER, wanted, 2, token)
        told += [row.sequence for row in page.rows]
        token = page.next_token
        if not token:
            break
    assert told == [6, 5, 4, 3, 2, 1]
    of_key = await world.read.audit(CALLER, wanted._replace(target=f"keys/{keys[1]}"), 0, "")
    assert [row.event.action for row in of_key.rows] == ["CreateKey"]
    first = await world.read.audit(CALLER, wanted, 2, "")
    with pytest.raises(InvalidArgumentError):
        await world.read.audit(CALLER, wanted._replace(start=1), 2, first.next_token)


@pytest.mark.parametrize("size", [0, 1, 2, 4, 6])
async def test_policies_by_pages(size: int) -> None:
    """By name, at most as many as are asked for."""
    world = World()
    told, token = [], ""
    while True:
        page = await world.read.policies(size, token)
        assert len(page.rows) <= (size or 100)
        told += [policy.name for policy in page.rows]
        token = page.next_token
        if not token:
            break
    assert told == sorted(world.policies.by_name)
