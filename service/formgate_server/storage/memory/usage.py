"""What was consumed, in memory."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyHolder, KeyOwner, Owed, UsageEntry, UsageFilter, UsageSum, owed, owes
from formgate_server.storage import sums
from formgate_server.storage.sums import OTHER, Sum

if TYPE_CHECKING:
    from formgate_server.storage.memory.registry import MemoryRegistry

_BY_TAG = "tag:"


def _now() -> int:
    return time.time_ns() // 1_000


class HourOf(NamedTuple):
    """What is summed up together: a key's operation in the hour that begins at ``hour``, in UTC."""

    account_id: str
    key_id: str
    hour: int
    operation: str


class TagHour(NamedTuple):
    """An account's tag in the hour that begins at ``hour``, in UTC."""

    account_id: str
    tag: str
    hour: int


class MemoryUsageLedger:
    """The UsageLedger port."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._tables = registry.tables
        self.records: dict[tuple[str, str], UsageEntry] = {}
        self.hours: dict[HourOf, Sum] = {}
        self.tag_hours: dict[TagHour, dict[str, Sum]] = {}
        """By the tag's values."""
        self.owed: dict[tuple[str, str], tuple[int, Owed]] = {}
        """By account and record, with the time since when."""

    async def owners(self, key_ids: Collection[str]) -> Mapping[str, KeyOwner]:
        """See ``UsageLedger``."""
        keys = (self._tables.keys[key_id] for key_id in key_ids if key_id in self._tables.keys)
        return {key.key_id: KeyOwner(key.account_id, self._tables.accounts[key.account_id].policy) for key in keys}

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """See ``UsageLedger``."""
        return [self._record(entry) for entry in entries]

    async def sums(self, wanted: UsageFilter, group_by: str) -> list[UsageSum]:
        """See ``UsageLedger``."""
        found: dict[tuple[int, str], Sum] = {}
        for hour, group, each in self._grouped(wanted, group_by):
            if wanted.start <= hour < wanted.end:
                found[hour, group] = found.get((hour, group), Sum()).plus(each)
        return sorted(UsageSum(hour, group, *total) for (hour, group), total in found.items())

    async def holders(self, key_ids: Collection[str]) -> Mapping[str, KeyHolder]:
        """See ``UsageLedger``."""
        keys = (key for key in map(self._tables.key, key_ids) if key is not None)
        return {key.key_id: KeyHolder(key, self._tables.accounts[key.account_id]) for key in keys}

    async def pending(self, older_than: int, most: int) -> list[Owed]:
        """See ``UsageLedger``."""
        now = _now()
        old = sorted((since, identity) for identity, (since, _) in self.owed.items() if since <= now - older_than)
        taken = [self.owed[identity][1] for _, identity in old[:most]]
        self._owe(taken)
        return taken

    async def done(self, settled: Sequence[Owed]) -> None:
        """See ``UsageLedger``."""
        for each in settled:
            self.owed.pop((each.account_id, each.record_id), None)

    async def forget_records(self, before: int, most: int) -> int | None:
        """See ``UsageLedger``."""
        old = [identity for identity, entry in self.records.items() if entry.occur_time < before][:most]
        for identity in old:
            del self.records[identity]
        return len(old)

    async def forget_sums(self, before: int, most: int) -> int | None:
        """See ``UsageLedger``. A tag's hour goes whole."""
        hours = [of for of in self.hours if of.hour < before][:most]
        for of in hours:
            del self.hours[of]
        forgotten = len(hours)
        for tag_hour in [of for of in self.tag_hours if of.hour < before]:
            if forgotten < most:
                forgotten += len(self.tag_hours.pop(tag_hour))
        return forgotten

    async def count_old(self, records_before: int, sums_before: int) -> tuple[int, int]:
        """See ``UsageLedger``."""
        of_tags = sum(len(values) for of, values in self.tag_hours.items() if of.hour < sums_before)
        return (
            sum(entry.occur_time < records_before for entry in self.records.values()),
            sum(of.hour < sums_before for of in self.hours) + of_tags,
        )

    def _owe(self, owed: Iterable[Owed]) -> None:
        self.owed |= {(each.account_id, each.record_id): (_now(), each) for each in owed}

    def _grouped(self, wanted: UsageFilter, group_by: str) -> Iterator[tuple[int, str, Sum]]:
        """Yield an account's sums with their hour and group."""
        if group_by.startswith(_BY_TAG):
            for (account_id, tag, hour), values in self.tag_hours.items():
                if (account_id, tag) == (wanted.account_id, group_by.removeprefix(_BY_TAG)):
                    yield from ((hour, value, each) for value, each in values.items())
            return
        for of, each in self.hours.items():
            if of.account_id == wanted.account_id and wanted.key_id in ("", of.key_id):
                yield of.hour, {"": "", "key": of.key_id, "operation": of.operation}[group_by], each

    def _record(self, entry: UsageEntry) -> UsageOutcome:
        record = entry.record
        identity = entry.account_id, record.record_id
        known = self.records.get(identity)
        if known is not None:
            return UsageOutcome.DUPLICATE if known.content == entry.content else UsageOutcome.CONFLICT
        self.records[identity] = entry
        if owes(record):
            self._owe([owed(entry)])
        hour, one = sums.hour_of(entry), sums.of(entry)
        group = HourOf(entry.account_id, record.key_id, hour, record.operation)
        self.hours[group] = self.hours.get(group, Sum()).plus(one)
        for tag, value in entry.summed_tags:
            values = self.tag_hours.setdefault(TagHour(entry.account_id, tag, hour), {})
            of_its_own = value in values or sums.room(len(values.keys() - {OTHER}))
            own = value if of_its_own else OTHER
            values[own] = values.get(own, Sum()).plus(one)
        return UsageOutcome.ACCEPTED
