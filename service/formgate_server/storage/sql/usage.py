"""What was consumed: the records as sent, and their sums by the hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import case, select, tuple_

from formgate_server.core.model import UsageOutcome
from formgate_server.core.ports import KeyOwner, UsageEntry
from formgate_server.storage.sql.dialect import batches, inserting
from formgate_server.storage.sql.rows import usage_values
from formgate_server.storage.sql.tables import accounts, keys, usage_hours, usage_records

if TYPE_CHECKING:
    from formgate_server.storage.sql.connection import Connection
    from formgate_server.storage.sql.engine import Database

HOUR = 3_600_000_000

_MOST = 2**63 - 1  # a sum stays there: it may not fail, nor silently turn into a float as SQLite has it

_Identity: TypeAlias = tuple[str, str]
_IDENTITY = (usage_records.c.account_id, usage_records.c.record_id)
_OWNERS = select(keys.c.key_id, accounts.c.account_id, accounts.c.policy).join_from(keys, accounts)


class SqlUsageLedger:
    """The UsageLedger port."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def owners(self, key_ids: Collection[str]) -> Mapping[str, KeyOwner]:
        """See ``UsageLedger``."""
        owners: dict[str, KeyOwner] = {}
        for some in batches(key_ids):
            async with self._database.reading() as connection:
                rows = await connection.execute(_OWNERS.where(keys.c.key_id.in_(some)))
            owners |= {key_id: KeyOwner(account_id, policy) for key_id, account_id, policy in rows}
        return owners

    async def record(self, entries: Sequence[UsageEntry]) -> list[UsageOutcome]:
        """See ``UsageLedger``."""
        firsts: dict[_Identity, UsageEntry] = {}
        for entry in entries:
            firsts.setdefault(_identity(entry), entry)
        if not firsts:
            return []
        # Always in the same order, so that two such transactions wait for each other's rows and never both ways.
        ordered = [firsts[each] for each in sorted(firsts)]
        async with self._database.writing() as connection:
            kept = await _insert(connection, ordered)
            there = await _contents(connection, [each for each in firsts if each not in kept])
            await _add_up(connection, [entry for entry in ordered if _identity(entry) in kept])
        contents = {each: firsts[each].content for each in kept} | there
        return [_outcome(entry, kept, contents) for entry in entries]


def _identity(entry: UsageEntry) -> _Identity:
    return entry.account_id, entry.record.record_id


def _outcome(entry: UsageEntry, new: set[_Identity], contents: Mapping[_Identity, bytes]) -> UsageOutcome:
    """Say what became of ``entry``; the first of a new identity takes it out of ``new``."""
    identity = _identity(entry)
    if identity in new:
        new.remove(identity)
        return UsageOutcome.ACCEPTED
    return UsageOutcome.DUPLICATE if entry.content == contents[identity] else UsageOutcome.CONFLICT


async def _insert(connection: Connection, entries: Sequence[UsageEntry]) -> set[_Identity]:
    """Add the records whose identity is new, and return those identities."""
    new = inserting(connection, usage_records).on_conflict_do_nothing().returning(*_IDENTITY)
    rows = await connection.execute(new, [usage_values(entry) for entry in entries])
    return {(account_id, record_id) for account_id, record_id in rows}


async def _contents(connection: Connection, identities: Collection[_Identity]) -> dict[_Identity, bytes]:
    """Return the content digests of records that are there."""
    contents = {}
    for some in batches(identities):
        query = select(*_IDENTITY, usage_records.c.content).where(tuple_(*_IDENTITY).in_(some))
        for account_id, record_id, content in await connection.execute(query):
            contents[account_id, record_id] = content
    return contents


async def _add_up(connection: Connection, entries: Iterable[UsageEntry]) -> None:
    """Add records to the sums of their hours."""
    units: Counter[tuple[str, str, int, str]] = Counter()
    records: Counter[tuple[str, str, int, str]] = Counter()
    for entry in entries:
        hour = entry.occur_time - entry.occur_time % HOUR
        group = entry.account_id, entry.record.key_id, hour, entry.record.operation
        units[group] += entry.record.units
        records[group] += 1
    if not records:
        return
    added = inserting(connection, usage_hours)
    old, new = usage_hours.c, added.excluded
    total = case((old.units > _MOST - new.units, _MOST), else_=old.units + new.units)
    summed = added.on_conflict_do_update(
        index_elements=usage_hours.primary_key, set_={"units": total, "records": old.records + new.records}
    )
    names = [column.name for column in usage_hours.primary_key]
    rows = [
        dict(zip(names, group, strict=True)) | {"units": min(units[group], _MOST), "records": records[group]}
        for group in sorted(records)
    ]
    await connection.execute(summed, rows)
