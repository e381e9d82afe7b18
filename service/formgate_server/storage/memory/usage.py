"""What was consumed, in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyOwner, UsageEntry

if TYPE_CHECKING:
    from formgate_server.storage.memory.registry import MemoryRegistry

_HOUR = 3_600_000_000
_MOST = 2**63 - 1


class HourOf(NamedTuple):
    """What is summed up together: a key's operation in the hour that begins at ``hour``, in UTC."""

    account_id: str
    key_id: str
    hour: int
    operation: str


class Sums(NamedTuple):
    """How many units in how many records. Units stay at 2**63 - 1."""

    units: int
    records: int


class MemoryUsageLedger:
    """The UsageLedger port."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self._tables = registry.tables
        self.records: dict[tuple[str, str], UsageEntry] = {}
        self.hours: dict[HourOf, Sums] = {}

    async def owners(self, key_ids: Collection[str]) -> Mapping[str, KeyOwner]:
        """See ``UsageLedger``."""
        keys = (self._tables.keys[key_id] for key_id in key_ids if key_id in self._tables.keys)
        return {key.key_id: KeyOwner(key.account_id, self._tables.accounts[key.account_id].policy) for key in keys}

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """See ``UsageLedger``."""
        return [self._record(entry) for entry in entries]

    def _record(self, entry: UsageEntry) -> UsageOutcome:
        record = entry.record
        identity = entry.account_id, record.record_id
        known = self.records.get(identity)
        if known is not None:
            return UsageOutcome.DUPLICATE if known.content == entry.content else UsageOutcome.CONFLICT
        self.records[identity] = entry
        hour = HourOf(entry.account_id, record.key_id, entry.occur_time // _HOUR * _HOUR, record.operation)
        units, records = self.hours.get(hour, Sums(0, 0))
        self.hours[hour] = Sums(min(units + record.units, _MOST), records + 1)
        return UsageOutcome.ACCEPTED
