"""What was consumed, in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyOwner, UsageEntry, UsageFilter, UsageSum
from formgate_server.storage import sums
from formgate_server.storage.sums import OTHER, Sum

if TYPE_CHECKING:
    from formgate_server.storage.memory.registry import MemoryRegistry

_BY_TAG = "tag:"


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
        hour, one = sums.hour_of(entry), sums.of(entry)
        group = HourOf(entry.account_id, record.key_id, hour, record.operation)
        self.hours[group] = self.hours.get(group, Sum()).plus(one)
        for tag, value in entry.summed_tags:
            values = self.tag_hours.setdefault(TagHour(entry.account_id, tag, hour), {})
            of_its_own = value in values or sums.room(len(values.keys() - {OTHER}))
            own = value if of_its_own else OTHER
            values[own] = values.get(own, Sum()).plus(one)
        return UsageOutcome.ACCEPTED
