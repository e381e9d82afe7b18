"""Recording consumption: durable when acknowledged, counted once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields as fields_of
from typing import NamedTuple

from formgate_server.core import fields
from formgate_server.core.compile_key import counters
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.finishing import Finishing
from formgate_server.core.limits import Counter as LimitCounter
from formgate_server.core.lookup import sees
from formgate_server.core.model import Caller, UsageOutcome, UsageRecord
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Clock, KeyOwner, Limiter, Registry, UsageEntry, UsageLedger

MOST_RECORDS = 1_000
_DAY = 86_400 * 1_000_000
OLDEST = 35 * _DAY
AHEAD = 5 * 60 * 1_000_000
_LONGEST_OPERATION = 128
_LONGEST_LATENCY = _DAY
_FIELDS = tuple(field.name for field in fields_of(UsageRecord) if field.name != "tags")
_LARGEST_UNITS = 10**15


class UsageResult(NamedTuple):
    """What became of a record; ``message`` says why it was not accepted."""

    record_id: str
    outcome: UsageOutcome
    message: str = ""


class RecordUsage:
    """Records consumption."""

    def __init__(
        self, ledger: UsageLedger, registry: Registry, limiter: Limiter, policies: Policies, clock: Clock
    ) -> None:
        self._finishing = Finishing()
        self._ledger = ledger
        self._registry = registry
        self._limiter = limiter
        self._policies = policies
        self._clock = clock

    async def __call__(
        self, caller: Caller, records: Sequence[UsageRecord | InvalidArgumentError]
    ) -> list[UsageResult]:
        """Record what is acceptable, all of it in one transaction, and say of each record what became of it."""
        now = self._clock.now()
        wanted = {record.key_id for record in records if isinstance(record, UsageRecord)}
        owners = await self._ledger.owners({key_id for key_id in wanted if fields.is_identifier(key_id)})
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
        # Cut off after the records are kept, a repeat would find duplicates and charge nothing.
        outcomes = await self._finishing.run(self._keep(entries)) if entries else []
        recorded = zip(entries, outcomes, strict=True)
        return [result or _recorded(*next(recorded)) for result in results]

    async def finish(self) -> None:
        """Wait for the records under way."""
        await self._finishing.finish()

    async def _keep(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """Keep records, and charge or give back what those that are new say."""
        # Read before the records are kept: a store that is away then leaves nothing half done.
        charging = {entry.record.key_id for entry in entries if entry.record.charge_units}
        charged = {key_id: await self._counters(key_id) for key_id in charging}
        outcomes = await self._ledger.record(entries)
        for entry, outcome in zip(entries, outcomes, strict=True):
            record, account_id = entry.record, entry.account_id
            if outcome is not UsageOutcome.ACCEPTED:
                continue
            if record.refund_request_id:
                await self._limiter.refund(account_id, record.key_id, record.refund_request_id)
            if record.charge_units:
                counted = charged[record.key_id]
                await self._limiter.adjust(account_id, counted, record.charge_units, once=record.record_id)
        return outcomes

    async def _counters(self, key_id: str) -> Sequence[LimitCounter]:
        """Return what a key is charged by; of a key that is gone, nothing."""
        key = await self._registry.key(key_id)
        account = None if key is None else await self._registry.account(key.account_id)
        if key is None or account is None:
            return ()
        return counters(account, self._policies.by_name[account.policy].plans[account.plan], key)


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
    tags = tuple((name, record.tags[name]) for name in policies.by_name[owner.policy].usage_tags if name in record.tags)
    return UsageEntry(owner.account_id, occur_time, _content(record), record, tags)


def _content(record: UsageRecord) -> bytes:
    """Return the digest of a record as it was sent: by it a repeat is told from another record of the same id."""
    said = [getattr(record, name) for name in _FIELDS]
    return hashlib.sha256(json.dumps([*said, record.tags], sort_keys=True).encode()).digest()


def _rejected(record: UsageRecord | InvalidArgumentError, error: InvalidArgumentError) -> UsageResult:
    record_id = record.record_id if isinstance(record, UsageRecord) else error.metadata.get("record_id", "")
    return UsageResult(record_id, UsageOutcome.REJECTED, error.message)


_MESSAGES = {
    UsageOutcome.DUPLICATE: "this record was recorded before",
    UsageOutcome.CONFLICT: "record_id: was recorded before with other content",
}


def _recorded(entry: UsageEntry, outcome: UsageOutcome) -> UsageResult:
    return UsageResult(entry.record.record_id, outcome, _MESSAGES.get(outcome, ""))
