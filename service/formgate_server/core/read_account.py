"""Reading what belongs to an account: where its limits stand, what was used, what was changed."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from formgate_server.core import calendar, fields, lookup
from formgate_server.core.compile_key import counters
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.limits import Standing
from formgate_server.core.model import Caller, Period
from formgate_server.core.paging import Page, page
from formgate_server.core.policy import Policies, Policy
from formgate_server.core.ports import (
    AuditFilter,
    AuditRow,
    Clock,
    Cursor,
    Limiter,
    Registry,
    UsageFilter,
    UsageLedger,
    UsageSum,
)

LONGEST_USAGE = 400 * 86_400 * 1_000_000
_GROUPS = ("", "key", "operation")


class UsageBucket(NamedTuple):
    """The usage of an hour or a day from ``start`` on, and of a group."""

    start: int
    group: str
    units: int
    records: int


class UsageQuery(NamedTuple):
    """Which usage to tell. ``end`` None: now. ``daily``: by days of the account's zone, else by hours of UTC."""

    account_id: str
    key_id: str = ""
    start: int | None = None
    end: int | None = None
    daily: bool = False
    group_by: str = ""


class ReadAccount:
    """Reads what belongs to an account."""

    def __init__(
        self, registry: Registry, limiter: Limiter, ledger: UsageLedger, policies: Policies, clock: Clock
    ) -> None:
        self._registry = registry
        self._limiter = limiter
        self._ledger = ledger
        self._policies = policies
        self._clock = clock

    async def limits(self, caller: Caller, account_id: str, key_id: str) -> tuple[Standing, ...]:
        """Tell where the limits stand that a key is charged by; without a key, those that the account holds."""
        key = None
        if key_id:
            key, account = await lookup.key(self._registry, caller, key_id)
            if account_id not in ("", account.account_id):
                raise InvalidArgumentError("key_id", "is a key of another account")
        else:
            account = await lookup.account(self._registry, caller, account_id)
        plan = self._policies.of(account).plans[account.plan]
        return await self._limiter.look(account.account_id, counters(account, plan, key))

    async def usage(self, caller: Caller, query: UsageQuery) -> list[UsageBucket]:
        """Sum up usage by hour or day and group, in order. An hour belongs to the day in which it begins."""
        account = await lookup.account(self._registry, caller, query.account_id)
        policy = self._policies.of(account)
        fields.identifier(query.key_id, "key_id")
        _check_group(query, policy)
        end = self._clock.now() if query.end is None else query.end
        if query.start is None:
            raise InvalidArgumentError("start_time", "is required")
        if not query.start < end <= query.start + LONGEST_USAGE:
            raise InvalidArgumentError("end_time", "must be after start_time, by at most 400 days")
        wanted = UsageFilter(account.account_id, query.key_id, query.start, end)
        sums = await self._ledger.sums(wanted, query.group_by)
        if not query.daily:
            return [UsageBucket(*each) for each in sums]
        return _by_day(sums, account.time_zone or policy.plans[account.plan].time_zone)

    async def audit(self, caller: Caller, wanted: AuditFilter, page_size: int, page_token: str) -> Page[AuditRow]:
        """Return a page of an account's audit trail, newest first."""
        await lookup.account(self._registry, caller, wanted.account_id)

        async def fetch(after: Cursor | None, most: int) -> list[AuditRow]:
            return await self._registry.audit_rows(wanted, None if after is None else after.create_time, most)

        return await page(fetch, lambda row: Cursor(row.sequence, "audit"), ("audit", wanted), page_size, page_token)

    async def policies(self, page_size: int, page_token: str) -> Page[Policy]:
        """Return a page of the policies, by name."""

        async def fetch(after: Cursor | None, most: int) -> list[Policy]:
            names = sorted(name for name in self._policies.by_name if after is None or name > after.id)
            return [self._policies.by_name[name] for name in names[:most]]

        return await page(fetch, lambda policy: Cursor(0, policy.name), ("policies",), page_size, page_token)


def _check_group(query: UsageQuery, policy: Policy) -> None:
    if query.group_by in _GROUPS:
        return
    kind, _, name = query.group_by.partition(":")
    if kind != "tag" or name not in policy.usage_tags:
        tags = "".join(f", tag:{tag}" for tag in policy.usage_tags)
        raise InvalidArgumentError("group_by", f"must be key, operation{tags} or empty")
    if query.key_id:
        raise InvalidArgumentError("key_id", "can not be given with a tag: those sums are of all keys")


def _by_day(sums: list[UsageSum], zone: str) -> list[UsageBucket]:
    days: dict[tuple[int, str], list[int]] = defaultdict(lambda: [0, 0])
    for hour, group, units, records in sums:
        total = days[calendar.bounds(Period.DAY, zone, hour).start, group]
        total[0] += units
        total[1] += records
    return [
        UsageBucket(day, group, min(units, fields.LARGEST), records)
        for (day, group), (units, records) in sorted(days.items())
    ]
