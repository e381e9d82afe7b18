"""Recording consumption: durable when acknowledged, counted once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from typing import NamedTuple

from formgate_server.core import fields
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.finishing import Finishing
from formgate_server.core.lookup import sees
from formgate_server.core.model import Caller, UsageOutcome, UsageRecord
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Clock, KeyOwner, UsageEntry, UsageLedger, owed, owes
from formgate_server.core.settle import Settle
from formgate_server.core.together import Together

MOST_RECORDS = 1_000
_DAY = 86_400 * 1_000_000
OLDEST = 35 * _DAY
AHEAD = 5 * 60 * 1_000_000
_LONGEST_OPERATION = 128
_LONGEST_LATENCY = _DAY
_FIELDS = tuple(field.name for field in fields_of(UsageRecord) if field.name != "tags")
_LARGEST_UNITS = 10**15
_MOST_BYTES = 1_000_000
_BYTES = 200  # of a record that says next to nothing: so at most 5,000 of those go together
_PATIENCE_SECONDS = 1.0
_MOST_OWNERS = 100_000
_encode = json.JSONEncoder(sort_keys=True).encode


class UsageResult(NamedTuple):
    """What became of a record; ``message`` says why it was not accepted."""

    record_id: str
    outcome: UsageOutcome
    message: str = ""


class _Kept(NamedTuple):
    """What became of an entry, and what charges or gives back what its transaction owes; None: nothing is owed."""

    outcome: UsageOutcome
    settling: asyncio.Task[None] | None


class RecordUsage:
    """Records consumption.

    Calls that come while a transaction is under way go together into the next one.
    """

    def __init__(
        self,
        ledger: UsageLedger,
        settle: Settle,
        policies: Policies,
        clock: Clock,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """``patience_seconds``: how long a call waits for its charges; then whoever sweeps makes them."""
        self._finishing = Finishing()
        self._together = Together(self._keep, _MOST_BYTES, _size)
        self._owners: dict[str, KeyOwner] = {}
        self._ledger = ledger
        self._settle = settle
        self._policies = policies
        self._clock = clock
        self._patience_seconds = patience_seconds

    async def __call__(
        self, caller: Caller, records: Sequence[UsageRecord | InvalidArgumentError]
    ) -> list[UsageResult]:
        """Record what is acceptable, all of it in one transaction, and say of each record what became of it."""
        now = self._clock.now()
        owners = await self._owners_of({record.key_id for record in records if isinstance(record, UsageRecord)})
        results: list[UsageResult | None] = []
        entries = []
        for record in records:
            try:
                entry = _entry(record, owners, caller, self._policies, now)
            except InvalidArgumentError as error:
                results.append(_rejected(record, error))
            else:
                results.append(None)
                entries.append(entry)
        kept = await self._together(entries) if entries else ()
        if settling := {each.settling for each in kept if each.settling is not None}:
            await asyncio.wait(settling, timeout=self._patience_seconds)
        recorded = zip(entries, kept, strict=True)
        return [result or _recorded(*next(recorded)) for result in results]

    async def _owners_of(self, key_ids: set[str]) -> Mapping[str, KeyOwner]:
        """Return whose these keys are. That never changes, so who is known is not asked for again."""
        known = {key_id: self._owners[key_id] for key_id in key_ids if key_id in self._owners}
        missing = {key_id for key_id in key_ids - known.keys() if fields.is_identifier(key_id)}
        if missing:
            found = await self._ledger.owners(missing)
            if len(self._owners) + len(found) > _MOST_OWNERS:
                self._owners.clear()
            self._owners |= found
            known |= found
        return known

    async def finish(self) -> None:
        """Wait for the records under way, and for what they owe."""
        await self._together.finish()
        await self._finishing.finish()

    async def _keep(self, entries: Sequence[UsageEntry]) -> list[_Kept]:
        """Keep records in one transaction, and begin to charge or give back what the new ones say.

        That goes on whoever of the callers goes away: repeated, their records would be duplicates.
        """
        outcomes = await self._ledger.record(entries)
        kept = list(zip(entries, outcomes, strict=True))
        accepted = [entry for entry, outcome in kept if outcome is UsageOutcome.ACCEPTED and owes(entry.record)]
        settling = self._finishing.start(self._settle([owed(entry) for entry in accepted])) if accepted else None
        return [_Kept(outcome, settling if owes(entry.record) else None) for entry, outcome in kept]


def _size(entry: UsageEntry) -> int:
    """Return about how many bytes a record is."""
    record = entry.record
    size = _BYTES + len(record.operation) + len(record.resource)
    return size + sum(len(name) + len(value) for name, value in record.tags.items()) if record.tags else size


def _entry(
    record: UsageRecord | InvalidArgumentError,
    owners: Mapping[str, KeyOwner],
    caller: Caller,
    policies: Policies,
    now: int,
) -> UsageEntry:
    """Check a record. Raises InvalidArgumentError naming the field."""
    if isinstance(record, InvalidArgumentError):
        raise record
    fields.required(record.record_id, "record_id")
    fields.required(record.key_id, "key_id")
    owner = owners.get(record.key_id)
    if owner is None or not sees(caller, owner.account_id, owner.policy):
        raise InvalidArgumentError("key_id", "no such key")
    fields.number(record.units, "units", largest=_LARGEST_UNITS)
    fields.text(record.operation, "operation", _LONGEST_OPERATION)
    if record.resource:
        fields.resource(record.resource, "resource")
    if record.status_code:
        fields.number(record.status_code, "status_code", smallest=100, largest=599)
    if record.latency is not None:
        fields.number(record.latency, "latency", largest=_LONGEST_LATENCY)
    fields.tags(record.tags)
    if record.charge_units is not None:
        fields.number(record.charge_units, "charge_units", largest=_LARGEST_UNITS)
    fields.identifier(record.refund_request_id, "refund_request_id")
    occur_time = now if record.occur_time is None else record.occur_time
    if occur_time < now - OLDEST:
        raise InvalidArgumentError("occur_time", "is more than 35 days ago")
    if occur_time > now + AHEAD:
        raise InvalidArgumentError("occur_time", "is more than 5 minutes ahead")
    tags = tuple((name, record.tags[name]) for name in policies.named(owner.policy).usage_tags if name in record.tags)
    return UsageEntry(owner.account_id, occur_time, _content(record), record, tags)


def _content(record: UsageRecord) -> bytes:
    """Return the digest of a record as it was sent: by it a repeat is told from another record of the same id."""
    said = [getattr(record, name) for name in _FIELDS]
    return hashlib.sha256(_encode([*said, record.tags]).encode()).digest()


def _rejected(record: UsageRecord | InvalidArgumentError, error: InvalidArgumentError) -> UsageResult:
    record_id = record.record_id if isinstance(record, UsageRecord) else error.metadata.get("record_id", "")
    return UsageResult(record_id, UsageOutcome.REJECTED, error.message)


_MESSAGES = {
    UsageOutcome.DUPLICATE: "this record was recorded before",
    UsageOutcome.CONFLICT: "record_id: was recorded before with other content",
}


def _recorded(entry: UsageEntry, kept: _Kept) -> UsageResult:
    return UsageResult(entry.record.record_id, kept.outcome, _MESSAGES.get(kept.outcome, ""))
